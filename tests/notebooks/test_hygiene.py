"""Every notebook is stored as it should be read: run in order, light, and without a trace of one machine."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from blockkit.show.fingerprint import MIME
from tools.accept_notebooks import WIDGET_VIEW, canonical, dumps, is_ignored
from tools.lessons import caption_of, lesson_number, pictured_cells, solutions

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_000_000
MOST_LINES, MEDIAN_LINES = 15, 4
FEWEST_EXERCISES = 2
COLAB = """import sys
if "google.colab" in sys.modules:  # on Colab this installs blockkit; elsewhere it does nothing
    from glob import glob
    %pip install --quiet {(glob("blockkit*.whl") or ["blockkit[lab]"])[0]}"""
OPENING = {
    r"\*\*What you will see\.\*\*": "what you will see",
    r"\*\*What you need\.\*\*": "what you need",
    r"\*\*(?:Time|How long)\.\*\*[^*]*?\bminutes?\b": "how many minutes it takes",
}
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|tmp|Users|usr|opt|mnt|var|private)/\S|\b[A-Z]:\\\\?\w")
UNWANTED = {
    r"^\s*(?:import|from)\s+matplotlib|\bplt\.": "plotting code: that belongs into blockkit.show",
    r"\bsys\.path\b": "sys.path",
    r"^\s*[!%]+\s*(?:pip|conda|cd)\b": "an installation or another folder",
    r"\binteract\(|\bOutput\(\)|\bclear_output\b": "interact, Output() or clear_output: they cannot be compared",
    r";\s*$": "a semicolon at the end: its figure is not compared",
}


def complaints(notebook: NotebookNode, lesson: int | None) -> Iterator[str]:
    """Say what is wrong with a stored notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "it was not run in order from a fresh kernel"
    if len(code) > sum(cell.cell_type == "markdown" for cell in notebook.cells):
        yield "it has more code cells than prose cells"
    if code and (median := statistics.median(len(cell.source.splitlines()) for cell in code)) > MEDIAN_LINES:
        yield f"half of its code cells have more than {MEDIAN_LINES} lines: the median is {median:g}"
    if "widgets" in notebook.metadata:
        yield "it holds widget state"
    for number, cell in enumerate(notebook.cells):
        is_colab = number == 1 and cell.source == COLAB
        said = () if is_colab else _of_code(cell) if cell.cell_type == "code" else _of_text(cell.source)
        yield from (f"cell {number}: {one}" for one in said)
    yield from _of_opening(notebook.cells)
    yield from _of_figures(notebook, lesson)
    yield from _of_exercises("\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))


def _of_opening(cells: list[NotebookNode]) -> Iterator[str]:
    opening = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    if not opening.startswith("# "):
        yield "it does not open with a title"
    for pattern, what in OPENING.items():
        if not re.search(pattern, opening):
            yield f"its first cell does not say {what}"
    if len(cells) < 2 or cells[1].cell_type != "code" or cells[1].source != COLAB:
        yield "its second cell is not the one that installs blockkit on Colab, word for word"


def _of_figures(notebook: NotebookNode, lesson: int | None) -> Iterator[str]:
    captioned = set()
    for n, (place, pictures, caption) in enumerate(pictured_cells(notebook), start=1):
        expected = f"Figure {lesson}.{n}."
        captioned.add(place + 1)
        if len(pictures) > 1:
            yield f"cell {place}: {len(pictures)} pictures: one for each cell"
        if caption is None:
            yield f"cell {place}: no caption follows: **{expected}** and what to read off"
        elif (caption.lesson, caption.number) != (lesson, n):
            yield f"cell {place + 1}: Figure {caption.lesson}.{caption.number}. where {expected} is due"
    for number, cell in enumerate(notebook.cells):
        if number not in captioned and caption_of(cell) is not None:
            yield f"cell {number}: a caption without a picture before it"


def _of_exercises(text: str) -> Iterator[str]:
    if not re.search(r"\*\*Predict\b", text):
        yield "it never asks the reader to **Predict:**"
    exercises = re.split(r"^\*\*\d+\. ", _section(text, "Exercises"), flags=re.MULTILINE)[1:]
    if len(exercises) < FEWEST_EXERCISES:
        yield f"{len(exercises)} exercises, expected at least {FEWEST_EXERCISES}, each beginning with **1. Its name.**"
    for number, exercise in enumerate(exercises, start=1):
        python = solutions(exercise)
        if not any(python):
            yield f"exercise {number} has no folded solution with python in it"
        yield from (f"exercise {number}: {error}" for source in python if (error := _syntax_error(source)))
    if "](https://doi.org/" not in _section(text, "Further reading"):
        yield 'no "Further reading" with a link to a DOI'


def _section(text: str, heading: str) -> str:
    """Return what stands below a heading, "" where there is none."""
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _syntax_error(source: str) -> str:
    try:
        ast.parse(source)
    except SyntaxError as error:
        return f"its solution is not python: {error.msg}"
    return ""


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
    assert list(complaints(nbformat.read(path, as_version=4), lesson_number(path))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_is_under_a_megabyte(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_was_stored_by_make_accept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert dumps(canonical(notebook, previous=notebook)) == path.read_text(encoding="utf-8")


OPENS = "# 3. Title\n\n**What you will see.** All.\n\n**What you need.** Little. **Time.** 5 minutes to read."
READING = "## Further reading\n\n- Somebody, 2023, [doi:10.1/a](https://doi.org/10.1/a)."
FOLDED = "<details><summary>Solution</summary>\n\n```python\na = 1\n```\n\n</details>"
EXERCISES = f"## Exercises\n\n**1. More.** How?\n\n{FOLDED}\n\n**2. Less.** Why?\n\n{FOLDED}\n\n{READING}"
PICTURE = new_output("display_data", {"image/png": "aa", MIME: {}})


def clean(source: str = "1 + 1", **cell: object) -> NotebookNode:
    """Return a small lesson without a fault, but for what the last code cell is given."""
    return lesson_of(new_code_cell(source, **cell))


def lesson_of(*cells: NotebookNode, **changed: str) -> NotebookNode:
    """Return a small lesson with these cells in its middle, and other texts where they are given."""
    texts = {"opens": OPENS, "colab": COLAB, "asks": "**Predict:** what?", "ends": EXERCISES, **changed}
    opens, asks, ends = (new_markdown_cell(texts[name]) for name in ("opens", "asks", "ends"))
    all_cells = [opens, new_code_cell(texts["colab"]), asks, *cells, ends]
    for count, cell in enumerate((cell for cell in all_cells if cell.cell_type == "code"), start=1):
        cell.execution_count = cell.execution_count or count
    return new_notebook(cells=all_cells)


def figures(*captions: str, n_pictures: int = 1) -> NotebookNode:
    """Return a small lesson with a picture before each of these captions."""
    cells = []
    for caption in captions:
        cells += [new_code_cell("show()", outputs=[PICTURE] * n_pictures), new_markdown_cell(caption)]
    return lesson_of(*cells)


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def test_a_clean_notebook_passes() -> None:
    assert list(complaints(clean(outputs=[printed("2 and/or a https://a.org/home/x\n")]), 3)) == []
    assert list(complaints(figures("**Figure 3.1.** One.\n\nIt is.", "**Figure 3.2.** Two."), 3)) == []


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        (clean(execution_count=7), "in order"),
        (clean("\n".join("1" * 16)), "more than 15 lines"),
        (lesson_of(*(new_code_cell("\n".join("1" * 5)) for _ in "ab")), "the median is 5"),
        (clean(""), "empty"),
        (clean("import matplotlib.pyplot as plt"), "plotting"),
        (clean("a\nimport sys\nsys.path.append('..')"), "sys.path"),
        (clean("!pip install x"), "cell 3: an installation"),
        (clean("%pip install x"), "cell 3: an installation"),
        (clean(COLAB), "cell 3: an installation"),
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
        (new_notebook(cells=[]), "open with a title"),
        (lesson_of(opens=OPENS.replace("# 3. ", "")), "open with a title"),
        (lesson_of(opens=OPENS.replace("What you will see.", "")), "does not say what you will see"),
        (lesson_of(opens=OPENS.replace("What you need.", "")), "does not say what you need"),
        (lesson_of(opens=OPENS.replace("5 minutes", "Long")), "does not say how many minutes"),
        (lesson_of(colab="import torch"), "second cell is not the one that installs"),
        (lesson_of(colab=f"{COLAB}\nimport torch"), "second cell is not the one that installs"),
        (lesson_of(colab=f"{COLAB}\nimport torch"), "cell 1: an installation"),
        (lesson_of(asks="What?"), "Predict"),
        (lesson_of(ends=READING), "0 exercises, expected at least 2"),
        (lesson_of(ends=EXERCISES.replace("**2. ", "**")), "1 exercises, expected at least 2"),
        (lesson_of(ends=EXERCISES.replace("```python", "```")), "exercise 1 has no folded solution with python"),
        (lesson_of(ends=EXERCISES.replace(FOLDED, "", 1)), "exercise 1 has no folded solution with python"),
        (lesson_of(ends=EXERCISES.replace("a = 1", "a = ")), "exercise 2: its solution is not python"),
        (lesson_of(ends=EXERCISES.replace("https://doi.org", "https://a.org")), "link to a DOI"),
        (lesson_of(ends=EXERCISES.replace("Further reading", "More")), "link to a DOI"),
        (figures("It is."), "cell 3: no caption follows: **Figure 3.1.**"),
        (figures("**Figure 3.1.** A.", "**Figure 3.3.** B."), "cell 6: Figure 3.3. where Figure 3.2. is due"),
        (figures("**Figure 2.1.** A."), "cell 4: Figure 2.1. where Figure 3.1. is due"),
        (figures("**Figure 3.1.** A.", n_pictures=2), "cell 3: 2 pictures: one for each cell"),
        (lesson_of(asks="**Figure 3.1.** A."), "cell 2: a caption without a picture"),
    ],
)
def test_each_fault_is_named(notebook: NotebookNode, said: str) -> None:
    assert any(said in one for one in complaints(notebook, 3))


def test_a_cell_that_was_not_run_is_a_fault() -> None:
    notebook = clean()
    notebook.cells[3].execution_count = None
    assert any("in order" in one for one in complaints(notebook, 3))
