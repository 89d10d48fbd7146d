"""What a lesson holds beside its cells: figures with captions, and exercises with folded solutions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
_CAPTION = re.compile(r"\*\*Figure (\d+)\.(\d+)\.\*\* +(\S.*)", re.DOTALL)
_FOLDED = re.compile(r"<details>\s*<summary>Solution</summary>(.*?)</details>", re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Caption:
    """The caption of a figure: its lesson, its number in the lesson, and its words in markdown."""

    lesson: int
    number: int
    text: str


def lesson_number(path: Path) -> int | None:
    """Return the number that a notebook's name begins with, None where there is none."""
    begins = re.match(r"\d+", path.stem)
    return int(begins[0]) if begins else None


def caption_of(cell: NotebookNode | None) -> Caption | None:
    """Return the caption that the first paragraph of a markdown cell is, None where it is none."""
    if cell is None or cell.cell_type != "markdown":
        return None
    found = _CAPTION.fullmatch(re.split(r"\n\s*\n", cell.source.strip(), maxsplit=1)[0])
    return Caption(int(found[1]), int(found[2]), " ".join(found[3].split())) if found else None


def pictures_of(cell: NotebookNode) -> list[NotebookNode]:
    """Return the outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if any(kind in output.get("data", {}) for kind in PICTURES)]


def pictured_cells(notebook: NotebookNode) -> Iterator[tuple[int, list[NotebookNode], Caption | None]]:
    """Yield each code cell with pictures: its place, the pictures, and the caption in the next cell."""
    cells = [*notebook.cells, None]
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and (pictures := pictures_of(cell)):
            yield place, pictures, caption_of(cells[place + 1])


def solutions(text: str) -> list[str]:
    """Return the python of each folded solution in a markdown text, "" for one that has none."""
    return ["\n\n".join(block.strip() for block in _PYTHON.findall(inside)) for inside in _FOLDED.findall(text)]
