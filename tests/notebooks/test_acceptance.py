"""What the stored form of a notebook keeps and what it leaves out."""

import base64
import io
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import accept_notebooks, tour
from tools.accept_notebooks import WIDGET_VIEW, canonical, dumps, merge_streams, strip_png


def lesson(*cells: NotebookNode) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell("# A *lesson* in `code`"), *cells])


def png(text: str) -> bytes:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([1, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Description": text})
    return buffer.getvalue()


def test_random_ids_and_times_give_way_to_the_same_bytes() -> None:
    def one(time: str) -> str:
        cell = new_code_cell("1", metadata={"execution": {"iopub.execute_input": time}, "tags": ["keep"]})
        return dumps(canonical(lesson(cell)))

    first, second = one("2026-01-01"), one("2027-01-01")
    assert first == second
    assert '"keep"' in first
    assert "2026" not in first


def test_canonical_form_is_reached_in_one_step() -> None:
    once = dumps(canonical(lesson(new_code_cell("print(1)\n\n", outputs=[new_output("stream", text="1\n")]))))
    assert dumps(canonical(nbformat.reads(once, as_version=4))) == once


def test_a_widget_leaves_its_picture_and_takes_its_state_away() -> None:
    data = {WIDGET_VIEW: {"model_id": "random"}, "text/plain": "SliceViewer()", "image/png": base64.b64encode(png("a"))}
    data["image/png"] = base64.b64encode(png("a")).decode()
    notebook = lesson(new_code_cell("v", outputs=[new_output("display_data", data)]))
    notebook.metadata["widgets"] = {"state": {}}
    stored = canonical(notebook)
    assert set(stored.cells[1].outputs[0].data) == {"text/plain", "image/png"}
    assert "widgets" not in stored.metadata


def test_the_words_for_a_picture_are_kept_and_stand_in_the_page() -> None:
    data = {"image/png": base64.b64encode(png("a")).decode()}
    metadata = {"image/png": {"alt": 'a "slice"', "width": 3}, "other": 1}
    stored = canonical(lesson(new_code_cell("v", outputs=[new_output("display_data", data, metadata=metadata)])))
    assert stored.cells[1].outputs[0].metadata == {"image/png": {"alt": 'a "slice"'}}
    page = tour.to_html(stored, "lesson")
    assert 'alt="a &quot;slice&quot;"' in page
    assert "No description" not in page


def test_a_stripped_picture_keeps_its_pixels_and_loses_its_text() -> None:
    first, second = png("made on Monday"), png("made on Tuesday")
    assert first != second
    assert strip_png(first) == strip_png(second)
    assert b"Monday" not in strip_png(first)
    assert b"Software" not in strip_png(first)
    assert np.array_equal(
        matplotlib.image.imread(io.BytesIO(strip_png(first))), matplotlib.image.imread(io.BytesIO(first))
    )


def test_addresses_are_written_as_zero() -> None:
    outputs = [
        new_output("stream", text="<object at 0x7f00ab>"),
        new_output("display_data", {"text/plain": "at 0x1fB"}),
    ]
    stored = canonical(lesson(new_code_cell("x", outputs=outputs)))
    assert stored.cells[1].outputs[0].text == "<object at 0x0>"
    assert stored.cells[1].outputs[1].data["text/plain"] == "at 0x0"


def test_neighboring_pieces_of_a_stream_are_joined_and_others_stay_in_order() -> None:
    pieces = [("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")]
    merged = merge_streams([new_output("stream", name=name, text=text) for name, text in pieces])
    assert [(one.name, one.text) for one in merged] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


@pytest.mark.parametrize("comment", [True, False])
def test_an_ignored_cell_keeps_its_output_until_its_source_changes(comment: bool) -> None:
    def timed(source: str, seconds: str, count: int) -> NotebookNode:
        text = f"# NBVAL_IGNORE_OUTPUT\n{source}" if comment else source
        tags = {} if comment else {"tags": ["nbval-ignore-output"]}
        output = new_output("stream", text=seconds)
        return lesson(new_code_cell(text, metadata=tags, outputs=[output], execution_count=count))

    stored = canonical(timed("wait()", "1.1 s", 1))
    again = canonical(timed("wait()", "1.2 s", 2), previous=stored)
    assert again.cells[1].outputs[0].text == "1.1 s"
    edited = canonical(timed("wait(2)", "2.2 s", 2), previous=stored)
    assert edited.cells[1].outputs[0].text == "2.2 s"
    assert canonical(timed("wait()", "1.2 s", 2)).cells[1].outputs[0].text == "1.2 s"


def test_an_edited_ignored_cell_that_was_not_run_again_loses_its_output() -> None:
    tags = {"tags": ["nbval-ignore-output"]}
    cell = new_code_cell("a", metadata=tags, outputs=[new_output("stream", text="old")])
    stored = canonical(lesson(cell))
    stored.cells[1].source = "b"
    fresh = lesson(new_code_cell("b", metadata=tags, outputs=[new_output("stream", text="new")]))
    assert canonical(fresh, previous=stored).cells[1].outputs[0].text == "new"


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"absent\.ipynb"):
        accept_notebooks.main([str(tmp_path / "absent.ipynb")])


@pytest.mark.slow
def test_a_failing_notebook_is_reported_and_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.ipynb"
    nbformat.write(lesson(new_code_cell("1 / 0")), path)
    before = path.read_bytes()
    assert accept_notebooks.main([str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_tour_writes_pages_with_pictures_and_leaves_the_notebooks_alone(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    draw = "from blockkit.show import plot_bars\nplot_bars(['a'], [1.0], 'GiB')"
    nbformat.write(lesson(new_code_cell(draw)), path)
    before = path.read_bytes()
    assert tour.main([str(path), "--output", str(tmp_path / "pages")]) == 0
    page = (tmp_path / "pages" / "lesson.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "plot_bars" in page
    assert '<a href="lesson.html">A lesson in code</a>' in (tmp_path / "pages" / "index.html").read_text(
        encoding="utf-8"
    )
    assert path.read_bytes() == before
