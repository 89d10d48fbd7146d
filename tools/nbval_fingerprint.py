"""A pytest plugin: with ``pytest --nbval notebooks/``, compare notebooks as a reader would.

Figures are compared by the data drawn in them (see :mod:`blockkit.show.fingerprint`), printed numbers to their last
printed digit, all other text character by character. Pictures, widget models and memory addresses are not compared. A
cell that was never run, or a picture without a fingerprint, checks nothing: that is a failure too.

After the last cell, the python of each folded solution runs in the same kernel: what it prints is not compared, but an
exception or a warning is a failure.
"""

import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accept_notebooks import WIDGET_VIEW, kernel_environment
from lessons import PICTURES, solutions
from nbformat.v4 import new_code_cell
from nbval.plugin import IPyNbCell, IPyNbFile

from blockkit.show.fingerprint import MIME, differences, same_text

TOLERANCE = 1e-3
HOW_TO = "If the new output is right, run: make accept"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Generator[None, Any, Any]:
    collectors = yield
    return [Notebook.from_parent(parent, path=file_path) if isinstance(one, IPyNbFile) else one for one in collectors]


class Notebook(IPyNbFile):
    """A notebook, run by this Python in the environment that its outputs were accepted in."""

    def setup(self) -> None:
        self.profile = tempfile.TemporaryDirectory()
        before = dict(os.environ)
        self.config.option.nbval_current_env = not self.config.option.nbval_kernel_name
        os.environ.update(kernel_environment(self.profile.name))
        try:
            super().setup()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def collect(self) -> Iterator["Cell"]:
        for item in super().collect():
            yield Cell.from_parent(self, name=item.name, cell_num=item.cell_num, cell=item.cell, options=item.options)
        text = "\n\n".join(cell.source for cell in self.nb.cells if cell.cell_type == "markdown")
        for number, source in enumerate(solutions(text), start=1):
            if source:
                options = {"check": False, "skip": False, "check_exception": False}
                yield Solution.from_parent(
                    self, name=f"Solution {number}", cell_num=number, cell=new_code_cell(source), options=options
                )

    def teardown(self) -> None:
        super().teardown()
        self.profile.cleanup()


class Cell(IPyNbCell):
    """One code cell, whose fresh outputs are compared with the stored ones."""

    def __init__(self, name: str, parent: Notebook, cell_num: int, cell: Any, options: Any) -> None:
        super().__init__(name, parent, cell_num, cell, options)
        self.output_timeout = 60

    def runtest(self) -> None:
        if self.cell.execution_count is None and self.cell.source.strip() and not self.options["skip"]:
            self.raise_cell_error(f"This cell was never run, so there is nothing to compare with. {HOW_TO}")
        super().runtest()

    def compare_outputs(self, test: Sequence[Any], ref: Sequence[Any], skip_compare: object = None) -> bool:
        said = output_differences(ref, test)
        self.comparison_traceback = [f"  {line}" for line in said] + ([HOW_TO] if said else [])
        return not said


class Solution(Cell):
    """The python of one folded solution: it has to run, without a warning."""

    def runtest(self) -> None:
        IPyNbCell.runtest(self)
        if said := _streams(self.test_outputs).get("stderr"):
            self.raise_cell_error("The solution writes to stderr", said)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
        return str(super().repr_failure(excinfo)).replace(f"Cell {self.cell_num}:", f"{self.name}:", 1)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::{self.name}"


def output_differences(stored: Sequence[Any], fresh: Sequence[Any]) -> list[str]:
    """Say how the outputs ``fresh`` of a cell differ from those ``stored``."""
    old_streams, new_streams = _streams(stored), _streams(fresh)
    said = []
    for name in sorted(old_streams.keys() | new_streams.keys()):
        said += _text_differences(name, old_streams.get(name, ""), new_streams.get(name, ""))
    old, new = ([o for o in outputs if "text" not in o] for outputs in (stored, fresh))
    if len(old) != len(new):
        return [*said, f"{len(old)} stored outputs became {len(new)}"]
    for one, other in zip(old, new, strict=True):
        said += _display_differences(one, other)
    return said


def _streams(outputs: Sequence[Any]) -> dict[str, str]:
    names = dict.fromkeys(output["name"] for output in outputs if "text" in output)
    return {name: "".join(o["text"] for o in outputs if "text" in o and o["name"] == name) for name in names}


def _display_differences(stored: Any, fresh: Any) -> list[str]:
    if "ename" in stored or "ename" in fresh:
        errors = [f"{one.get('ename')}: {one.get('evalue')}" for one in (stored, fresh)]
        return _text_differences("error", *errors)
    old, new = ({k: v for k, v in o["data"].items() if k != WIDGET_VIEW} for o in (stored, fresh))
    if old.keys() != new.keys():
        return [f"output of {' and '.join(sorted(old)) or 'nothing'} became {' and '.join(sorted(new)) or 'nothing'}"]
    said = []
    if MIME not in old and any(kind in old for kind in PICTURES):
        said.append("a picture without a fingerprint: draw it with blockkit.show, so that its data can be compared")
    for kind in old:
        if kind == MIME:
            said += differences(old[kind], new[kind], TOLERANCE)
        elif kind not in PICTURES:
            said += _text_differences(kind, old[kind], new[kind])
    return said


def _text_differences(kind: str, old: Any, new: Any) -> list[str]:
    if not isinstance(old, str) or not isinstance(new, str):
        return [] if old == new else [f"{kind}: {old!r} became {new!r}"]
    if same_text(old, new):
        return []
    lines = [old.splitlines(), new.splitlines()]
    if len(lines[0]) != len(lines[1]):
        return [f"{kind}: {len(lines[0])} lines became {len(lines[1])}:", *lines[1]]
    return [f"{kind}: {a!r} became {b!r}" for a, b in zip(*lines, strict=True) if not same_text(a, b)]
