"""The examples in the docstrings run as they stand, and every public name has one."""

import doctest
import inspect
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import matplotlib.pyplot
import pytest
import torch

import blockkit as bk

SHOWN = ("MemoryExplorer", "SliceViewer", "TrainingView")
PUBLIC = {
    **{name: getattr(bk, name) for name in (*bk.__all__, *SHOWN)},
    **{f"show.{name}": getattr(bk.show, name) for name in bk.show.__all__ if name not in SHOWN},
}


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in walk_packages(bk.__path__, "blockkit."):
        if info.name != "blockkit.__main__":
            yield from finder.find(import_module(info.name), info.name)


@cache
def small_scan() -> bk.Scan:
    """What the examples call ``scan``: a ball, 80 spokes, four coils."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (24, 18, 24)), indexing="ij")
    ball = (z**2 + y**2 + x**2 < 0.7).to(torch.complex64)
    return bk.simulate_scan(ball, (16, 12, 16), n_coils=4, n_spokes=80)


FOUND = sorted((test for test in examples() if test.examples), key=lambda test: test.name)


@pytest.mark.parametrize("example", FOUND, ids=lambda example: example.name.removeprefix("blockkit."))
def test_the_example_gives_what_it_says(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where it writes its files
    matplotlib.use("agg")
    example.globs = {"bk": bk, "torch": torch, "scan": small_scan()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed = doctest.DocTestRunner(verbose=False).run(example).failed
    matplotlib.pyplot.close("all")
    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_of_how_it_is_called(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    lines = [example.source for example in doctest.DocTestParser().get_examples(text)]
    assert any(f"bk.{name}" in line for line in lines)
    assert len(lines) <= 6, "an example is short"
