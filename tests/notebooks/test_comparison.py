"""What ``pytest --nbval`` lets pass and what it stops, on a small notebook of its own."""

import copy
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from blockkit.show.fingerprint import MIME
from tools import accept_notebooks
from tools.nbval_fingerprint import output_differences

ROOT = Path(__file__).parents[2]
SETUP = """import time
import numpy as np
from blockkit.show import SliceViewer, plot_curves, shapes_only, show_slices
volume = np.random.default_rng(0).normal(size=(8, 9, 10)) + 1j
gain, seed = 1.0, 0"""
CELLS = (
    SETUP,
    'show_slices({"ours": gain * volume})',
    'print(f"norm {np.linalg.norm(volume):.3f}", object())',
    'SliceViewer({"ours": gain * volume, "reference": 2 * volume})',
    'shapes_only(plot_curves({"loss": np.random.default_rng(seed).random(9)}, "epoch", "loss"))',
    "# NBVAL_IGNORE_OUTPUT\nprint(time.time_ns())",
    "object()",
)
SOLUTION = "**1. More?**\n\n<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"


def notebook() -> NotebookNode:
    cells = [new_markdown_cell("# A small lesson")] + [new_code_cell(source) for source in CELLS]
    cells.append(new_markdown_cell(SOLUTION.format("assert gain > 0; print('run, not ' + 'stored')")))
    for cell, number in zip(cells, "abcdefghi", strict=True):
        cell.id = number
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accepted") / "lesson.ipynb"
    nbformat.write(notebook(), path)
    assert accept_notebooks.main([str(path)]) == 0
    return path


def changed(stored: NotebookNode, cell: int, old: str, new: str) -> NotebookNode:
    other = copy.deepcopy(stored)
    code = [one for one in other.cells if one.cell_type == "code"][cell]
    assert old in code.source
    code.source = code.source.replace(old, new)
    return other


def run_nbval(folder: Path) -> dict[tuple[str, str], str]:
    """Run all notebooks of a folder; return the message of each cell that failed."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout=120", "-q", "-p", "nbval_fingerprint"]
    command += ["--color=no", "--rootdir", str(folder), "--junitxml", str(folder / "report.xml"), str(folder)]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])},
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stdout + run.stderr
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    failures = {
        (str(case.get("classname")).split(".")[0], str(case.get("name"))): failure.text or ""
        for case in cases
        for failure in case.findall("failure")
    }
    assert bool(failures) == bool(run.returncode)
    return failures


@pytest.mark.long
def test_an_accepted_notebook_passes_and_a_changed_one_fails_in_the_changed_cell(
    accepted: Path, tmp_path: Path
) -> None:
    stored = nbformat.read(accepted, as_version=4)
    harmless = changed(stored, 0, "gain, seed = 1.0, 0", "gain, seed = 1.0 + 1e-5, 7")
    harmful = changed(stored, 0, "gain, seed = 1.0, 0", "gain, seed = 1.01, 0")
    harmful = changed(harmful, 2, "linalg.norm(volume)", "linalg.norm(volume) * 1.001")
    harmful = changed(harmful, 4, "random(9)", "random(8)")
    emptied = copy.deepcopy(stored)
    for cell in emptied.cells[1:-1]:
        cell.outputs = []
    emptied.cells[-2].execution_count = None
    variants = {"same": stored, "harmless": harmless, "harmful": harmful, "emptied": emptied}
    for name, variant in variants.items():
        nbformat.write(variant, tmp_path / f"{name}.ipynb")
    failures = run_nbval(tmp_path)
    cells = {name: {cell for which, cell in failures if which == name} for name in variants}
    assert cells["same"] == cells["harmless"] == set()
    assert cells["harmful"] == {"Cell 1", "Cell 2", "Cell 3", "Cell 4"}
    assert "axes[0] image0: data moved by " in failures["harmful", "Cell 1"]
    assert " % (allowed 0.1 %)" in failures["harmful", "Cell 1"]
    assert "stdout: 'norm " in failures["harmful", "Cell 2"]
    assert "axes[0] line0.y: shape [9] became [8]" in failures["harmful", "Cell 4"]
    assert cells["emptied"] == {"Cell 1", "Cell 2", "Cell 3", "Cell 4", "Cell 6"}
    assert "never run" in failures["emptied", "Cell 6"]


@pytest.mark.slow
def test_solutions_run_after_the_last_cell_and_a_broken_one_is_named(tmp_path: Path) -> None:
    cells = [new_code_cell("x = 1", execution_count=1)]
    for source in ("x += 1\nx", "1 / 0", "import warnings\nwarnings.warn('careful')", "assert x == 2"):
        cells.insert(-1, new_markdown_cell(SOLUTION.format(source)))
    cells.append(new_markdown_cell("<details><summary>Solution</summary>\n\nBy hand.\n\n</details>"))
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    failures = run_nbval(tmp_path)
    assert set(failures) == {("lesson", "Solution 2"), ("lesson", "Solution 3")}
    assert "Solution 2: Cell execution caused an exception" in failures["lesson", "Solution 2"]
    assert "ZeroDivisionError" in failures["lesson", "Solution 2"]
    assert "Solution 3: The solution writes to stderr" in failures["lesson", "Solution 3"]
    assert "careful" in failures["lesson", "Solution 3"]


@pytest.mark.slow
def test_solutions_are_not_stored(accepted: Path) -> None:
    assert [cell.cell_type for cell in nbformat.read(accepted, as_version=4).cells][-2:] == ["code", "markdown"]
    assert "run, not stored" not in accepted.read_text(encoding="utf-8")


@pytest.mark.slow
def test_accepting_twice_gives_the_same_bytes(accepted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = accepted.read_bytes()
    assert accept_notebooks.main(["--check", str(accepted)]) == 0
    assert accept_notebooks.main([str(accepted)]) == 0
    assert accepted.read_bytes() == before
    assert capsys.readouterr().out.count(": same") == 2


def stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def display(**data: Any) -> dict[str, Any]:
    names = {"png": "image/png", "text": "text/plain", "print": MIME}
    return {"output_type": "display_data", "data": {names[key]: value for key, value in data.items()}}


PRINT = {"values": True, "texts": {}, "limits": {}, "arrays": {"image0": {"shape": [2], "norm": 5.0, "numbers": "3 4"}}}
OTHER = {**PRINT, "arrays": {"image0": {"shape": [2], "norm": 5.0, "numbers": "3 4.1"}}}


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ([stream("a 1.00\n"), stream("b\n")], [stream("a 1.01\nb\n")]),
        ([display(text="x"), stream("a")], [stream("a"), display(text="x")]),
        ([display(png="one", print=PRINT)], [display(png="two", print=PRINT)]),
        ([], []),
    ],
)
def test_what_a_reader_would_not_see_is_not_compared(stored: list[Any], fresh: list[Any]) -> None:
    assert output_differences(stored, fresh) == []


@pytest.mark.parametrize(
    ("stored", "fresh", "said"),
    [
        ([stream("a\nb 1\n")], [stream("a\nb 2\n")], "stdout: 'b 1' became 'b 2'"),
        ([stream("a\n")], [stream("a\nb\n")], "stdout: 1 lines became 2"),
        ([stream("a\n")], [], "stdout: 1 lines became 0"),
        ([], [{**stream("careful\n"), "name": "stderr"}], "stderr: 0 lines became 1"),
        ([display(text="1.5")], [display(text="1.7")], "text/plain: '1.5' became '1.7'"),
        ([display(text="1"), display(text="2")], [display(text="1")], "2 stored outputs became 1"),
        ([display(text="1")], [display(text="1", png="x")], "text/plain became image/png and text/plain"),
        ([display(png="x")], [display(png="x")], "a picture without a fingerprint"),
        ([display(print=PRINT)], [display(print=OTHER)], "image0: data moved by 2 % (allowed 0.1 %)"),
    ],
)
def test_what_a_reader_would_see_is_compared(stored: list[Any], fresh: list[Any], said: str) -> None:
    assert any(said in line for line in output_differences(stored, fresh))
