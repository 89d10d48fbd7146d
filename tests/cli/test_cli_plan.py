"""``plan`` tells what a run takes, as the library does, and what does not fit."""

from pathlib import Path

import h5py
import pytest

from blockkit.cli import main
from blockkit.data.heads import read_head
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.planner import plan
from tests.cli.small import SHAPE, make_raw, make_scan, make_weights, said


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, scan = tmp_path_factory.mktemp("plan"), make_scan()
    scan.save(place / "scan.h5")
    save_ismrmrd(place / "raw.h5", make_raw(scan))
    make_weights(place / "weights.safetensors")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("scan.h5", "train"), ("raw.h5", "recon")])
def test_it_prints_the_plan_of_the_library_without_reading_the_values(
    name: str, task: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(files / "weights.safetensors")
    if name == "scan.h5":
        monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    command = ["plan", str(files / name), "--budget-gib", "24", "--task", task, "--weights", weights]
    assert main([*command, "--n-coils", "2"]) == 0
    sizes = {"n_coils": 2, "n_samples": 60 * 24, "n_unrolls": 2, "network": ResidualCNN(4, 2)}
    expected = str(plan(SHAPE, budget_gib=24, training=task == "train", **sizes))
    shown = capsys.readouterr().out
    assert expected in shown
    assert "GiB" in expected
    assert "10 x 12 x 8 voxels, 2 coils, 1440 samples" in shown


@pytest.mark.slow
def test_it_plans_for_several_devices_that_share_the_volume(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(files / "scan.h5"), "--weights", str(files / "weights.safetensors"), "--budget-gib", "24"]
    assert main([*command, "--task", "recon", "--n-devices", "3"]) == 0
    sizes = {"n_coils": read_head(files / "scan.h5").n_coils, "n_samples": 60 * 24, "n_unrolls": 2}
    expected = plan(SHAPE, network=ResidualCNN(4, 2), budget_gib=24, training=False, n_devices=3, **sizes)
    assert f"A reconstruction: {expected}" in capsys.readouterr().out
    assert str(expected).startswith("on each of 3 devices: ")


def test_what_does_not_fit_is_said_with_what_would_help(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(files / "scan.h5"), "--weights", str(files / "weights.safetensors"), "--budget-gib"]
    assert main([*command, "0.0001", "--task", "recon"]) == 2
    captured = capsys.readouterr()
    assert "A reconstruction: does not fit" in captured.out
    assert "are missing. What helps:" in captured.out
    assert captured.err == "blockkit: nothing fits into 0.0001 GiB. What would help stands above.\n"


@pytest.mark.slow
def test_one_task_that_fits_is_enough(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(files / "scan.h5"), "--weights", str(files / "weights.safetensors"), "--budget-gib"]
    between = "0.0003"  # GiB: enough to reconstruct, not to train
    assert main([*command, between]) == 0
    shown = capsys.readouterr().out
    assert "A training step: does not fit" in shown
    assert "A reconstruction: blocks of" in shown


def test_a_file_that_is_no_scan_is_one_message(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(files / "weights.safetensors"), "--budget-gib", "1"]) == 2
    assert "--voxel-size" in said(capsys)
