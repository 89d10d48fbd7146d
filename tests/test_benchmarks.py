"""What a benchmark leaves behind where it cannot run."""

import runpy
from pathlib import Path

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
