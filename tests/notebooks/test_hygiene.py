"""Every notebook is stored as it should be read: run in order, light, and without a trace of one machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from blockkit.show.fingerprint import MIME
from tools.accept_notebooks import WIDGET_VIEW, canonical, dumps, is_ignored

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_000_000
MOST_LINES = 15
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|tmp|Users|usr|opt|mnt|var|private)/\S|\b[A-Z]:\\\\?\w")
UNWANTED = {
    r"^\s*(?:import|from)\s+matplotlib|\bplt\.": "plotting code: that belongs into blockkit.show",
    r"\bsys\.path\b": "sys.path",
    r"^\s*[!%]+\s*(?:pip|conda|cd)\b": "an installation or another folder",
    r"\binteract\(|\bOutput\(\)|\bclear_output\b": "interact, Output() or clear_output: they cannot be compared",
    r";\s*$": "a semicolon at the end: its figure is not compared",
}


def complaints(notebook: NotebookNode) -> Iterator[str]:
    """Say what is wrong with a stored notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "it was not run in order from a fresh kernel"
    if len(code) > sum(cell.cell_type == "markdown" for cell in notebook.cells):
        yield "it has more code cells than prose cells"
    if "widgets" in notebook.metadata:
        yield "it holds widget state"
    for number, cell in enumerate(notebook.cells):
        said = _of_code(cell) if cell.cell_type == "code" else _of_text(cell.source)
        yield from (f"cell {number}: {one}" for one in said)


def _of_code(cell: NotebookNode) -> Iterator[str]:
    if len(cell.source.splitlines()) > MOST_LINES:
        yield f"more than {MOST_LINES} lines"
    if not cell.source.strip():
        yield "empty"
    for pattern, what in UNWANTED.items():
        if re.search(pattern, cell.source, re.MULTILINE):
            yield what
    yield from _of_text(cell.source)
    for output in cell.outputs:
        if output.get("name") == "stderr":
            yield f"stderr: {output.text[:200]}"
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            yield f"error: {output.evalue}"
        data = output.get("data", {})
        if WIDGET_VIEW in data:
            yield "a widget in place of its picture"
        if "image/png" in data and MIME not in data and not is_ignored(cell):
            yield "a picture without a fingerprint: draw it with blockkit.show"
        for text in (output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))):
            yield from _of_text(text)


def _of_text(text: str) -> Iterator[str]:
    if path := MACHINE_PATH.search(text):
        yield f"a path of one machine: {text[path.start() : path.start() + 60]}"


def test_there_are_notebooks_to_look_at() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_is_clean(path: Path) -> None:
    assert list(complaints(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_is_under_a_megabyte(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_was_stored_by_make_accept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert dumps(canonical(notebook, previous=notebook)) == path.read_text(encoding="utf-8")


def clean(source: str = "1 + 1", **cell: object) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell(source, **{"execution_count": 1, **cell})])


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def test_a_clean_notebook_passes() -> None:
    assert list(complaints(clean(outputs=[printed("2 and/or a https://a.org/home/x\n")]))) == []


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        (clean(execution_count=None), "in order"),
        (clean(execution_count=2), "in order"),
        (clean("\n".join("1" * 16)), "more than 15 lines"),
        (clean(""), "empty"),
        (clean("import matplotlib.pyplot as plt"), "plotting"),
        (clean("a\nimport sys\nsys.path.append('..')"), "sys.path"),
        (clean("!pip install x"), "installation"),
        (clean("%pip install x"), "installation"),
        (clean("interact(f)"), "interact"),
        (clean("show(a);"), "semicolon"),
        (clean("open('/home/me/scan.h5')"), "path of one machine"),
        (clean(outputs=[printed("saved in /tmp/x/scan.h5")]), "path of one machine"),
        (clean(outputs=[printed("careful", "stderr")]), "stderr"),
        (clean(outputs=[new_output("error", ename="E", evalue="no", traceback=[])]), "error: no"),
        (clean(outputs=[new_output("display_data", {"image/png": "aa"})]), "without a fingerprint"),
        (clean(outputs=[new_output("display_data", {WIDGET_VIEW: {}})]), "widget in place"),
        (new_notebook(cells=[new_code_cell("1", execution_count=1)]), "more code cells"),
        (new_notebook(metadata={"widgets": {}}), "widget state"),
    ],
)
def test_each_fault_is_named(notebook: NotebookNode, said: str) -> None:
    assert any(said in one for one in complaints(notebook))
