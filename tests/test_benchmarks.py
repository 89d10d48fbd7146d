"""What a benchmark leaves behind where it cannot run, and the arithmetic of the long run."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_without_a_gpu_the_figures_of_one_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kept = BENCHMARKS / "results" / "gpu.md"
    before = kept.read_bytes()
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    after = kept.read_bytes()
    kept.write_bytes(before)
    assert after == before
    assert "no CUDA device" in capsys.readouterr().out


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "soak.py"))


def test_the_slope_is_that_of_the_steps_after_the_first_tenth_but_for_a_few_outliers(soak: dict[str, Any]) -> None:
    slope: Callable[..., float] = soak["slope"]
    steps = list(range(10, 1001, 10))
    values = [3.0 * n + 7 if n > 100 else 1e6 / n for n in steps]  # warming up, then three a step
    assert slope(steps, values) == pytest.approx(3, rel=1e-12)
    for i in range(15, 100, 10):
        values[i] += 1e5  # as when something else takes the machine
    assert slope(steps, values) == pytest.approx(3, rel=0.01)
    assert slope(steps, [4.0] * 100) == 0


def test_a_slope_of_too_few_samples_asks_for_more_steps(soak: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 of 2 samples are left, expected at least 2"):
        soak["slope"]([5, 100], [1.0, 2.0])


@pytest.mark.parametrize(("column", "grows"), [(1, 1), (2, 2048), (3, 0.01), (4, 0.01), (5, 0.1), (6, 1e-6)])
def test_each_thing_that_grows_breaks_its_own_limit_and_no_other(
    column: int, grows: float, soak: dict[str, Any]
) -> None:
    flat = [500_000.0, 3e8, 12.0, 90.0, 200_000.0, 0.012]  # bytes, bytes, descriptors, tensors, objects, seconds
    samples = [
        (n, *(value + grows * n * (i + 1 == column) for i, value in enumerate(flat))) for n in range(10, 500, 10)
    ]
    assert [holds for _, holds in soak["rows"](samples)] == [i + 1 != column for i in range(len(flat))]
