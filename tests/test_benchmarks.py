"""What a benchmark leaves behind where it cannot run, what it reads, and its arithmetic."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("key", ["ksp", "ksp_gas"])
def test_a_lung_scan_of_some_spokes_has_their_samples_in_cycles_per_field_of_view(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    lung_scan = runpy.run_path(str(BENCHMARKS / "real_data.py"))["lung_scan"]
    rng = np.random.default_rng(0)
    kspace = rng.standard_normal((1, 12, 5, 2)).astype(np.float32).view(np.complex64)[..., 0]
    coord = rng.uniform(-0.5, 0.5, (12, 5, 3))
    np.savez(tmp_path / "lung.npz", **{key: kspace, "coord": coord})
    chosen = np.arange(12) % 4 == 0
    scan = lung_scan(tmp_path / "lung.npz", chosen)
    np.testing.assert_array_equal(scan.kspace.numpy()[0], kspace[0, [0, 4, 8]].ravel())
    np.testing.assert_allclose(scan.trajectory.numpy(), 64 * coord[[0, 4, 8]].reshape(-1, 3), rtol=1e-6)
    assert scan.image_shape == (64, 64, 64)
    assert lung_scan(tmp_path / "lung.npz", slice(None)).kspace.shape == (1, 60)


def test_the_search_of_a_weight_starts_lower_for_a_larger_volume_and_less_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = runpy.run_path(str(BENCHMARKS / "robustness.py"))
    by_name = {setting.name: setting.first_weight for setting in module["settings"](True)}
    assert by_name["base"] == module["BASE_WEIGHT"]
    assert by_name["base"] > by_name["64 x 48 x 56"] > by_name["96 x 72 x 96"] > by_name["192 x 144 x 176"] > 0
    assert by_name["noise 10 %"] > by_name["base"] > by_name["noise 0.5 %"]
