"""The figures of a lesson as vector files: their names, their captions, the page of them all."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from blockkit.show.pictures import VARIABLE, asked_for, draw_vector, pictures
from tools import figures
from tools.lessons import Caption, caption_of, solutions


def test_a_caption_is_the_first_paragraph_of_a_markdown_cell() -> None:
    cell = new_markdown_cell("**Figure 3.12.** Where it is wrong:\nat $1/N$.\n\nAn answer. **Figure 3.13.** No.")
    assert caption_of(cell) == Caption(3, 12, "Where it is wrong: at $1/N$.")


@pytest.mark.parametrize("text", ["Figure 3.1. No.", "See **Figure 3.1.** here", "**Figure 3.1.**", "**Figure 3.** a"])
def test_other_text_is_no_caption(text: str) -> None:
    assert caption_of(new_markdown_cell(text)) is None
    assert caption_of(new_code_cell("**Figure 3.1.** No.")) is None
    assert caption_of(None) is None


def test_the_python_of_each_folded_solution_is_found() -> None:
    folded = "<details><summary>Solution</summary>\n\n{}\n\n</details>\n"
    block = "```python\n{}\n```"
    text = "```python\nnone\n```\n" + folded.format(block.format("a = 1") + "\nthen\n" + block.format("b = 2\nb"))
    assert solutions(text + folded.format("By hand.")) == ["a = 1\n\nb = 2\nb", ""]


def test_a_file_is_named_by_number_and_first_words_without_formulas() -> None:
    caption = Caption(1, 10, "The *tails* of $F^H F$, [as ever](https://a.org/b), fall as 1/r and more.")
    assert figures.name_of(caption) == "figure_1_10_the_tails_of_as_ever"


def small_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    return figure


def test_vectors_come_only_when_asked_for_and_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not {"image/svg+xml", "application/pdf"} & set(pictures(small_figure()))
    monkeypatch.setenv(VARIABLE, "svg pdf")
    assert {"image/png", "image/svg+xml", "application/pdf"} < set(pictures(small_figure()))
    for form in asked_for():
        assert draw_vector(small_figure(), form) == draw_vector(small_figure(), form)


def test_a_form_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "svg eps")
    with pytest.raises(ValueError, match="BLOCKKIT_VECTORS names eps, expected one or more of svg, pdf"):
        asked_for()


@pytest.mark.slow
def test_each_figure_and_widget_is_written_with_its_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup = "import torch\nfrom blockkit.show import SliceViewer, plot_bars\nvolume = torch.ones(4, 5, 6)"
    cells = [
        new_markdown_cell("# 4. A lesson"),
        new_code_cell(f"{setup}\nplot_bars(['a'], [1.0], 'GiB')"),
        new_markdown_cell("**Figure 4.1.** One *bar*.\n\nAnd prose."),
        new_code_cell("SliceViewer({'ours': volume})"),
        new_markdown_cell('**Figure 4.2.** A "viewer".'),
        new_code_cell("plot_bars(['a'], [2.0], 'GiB')"),
        new_markdown_cell("No caption."),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "04_lesson.ipynb")
    assert figures.main([str(tmp_path / "04_lesson.ipynb"), "--output", str(tmp_path), "--pdf"]) == 1
    assert "cell 5: a picture without a caption" in capsys.readouterr().out
    names = ["figure_4_1_one_bar", "figure_4_2_a_viewer"]
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == names
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in names:
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f'<img src="{name}.svg" alt="' in page
    assert "One <em>bar</em>." in page
    assert "SliceViewer" not in page
    assert "4. A lesson" in page
