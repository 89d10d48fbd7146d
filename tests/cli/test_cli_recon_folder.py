"""``recon`` of a folder writes an image for each scan, says what failed, and goes on when it is typed again."""

import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest

from blockkit.cli import main, recon_folder
from blockkit.data.cfl import save_cfl
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.mbdl import room
from tests.cli.small import SHAPE, make_folder, make_raw, make_scan, make_weights, said, written

SCAN = make_scan()
GRIDDING = ["--method", "gridding"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "scans", SCAN, ("ann_1", "bob_1"))


def image_at(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def test_each_image_has_the_bits_of_the_command_on_a_single_scan(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_ismrmrd(folder / "raw.mrd", make_raw(SCAN))
    options = ["--weights", str(make_weights(tmp_path / "weights.safetensors")), "--n-coils", "2"]
    options += ["--block-shape", "auto", "--device", "cpu"]
    assert main(["recon", str(folder), "-o", str(tmp_path / "images"), *options]) == 0
    shown = capsys.readouterr().out
    assert "[3 of 3] raw.mrd: " in shown
    assert f"3 of 3 scans have their images in '{tmp_path / 'images'}': 3 new" in shown
    for name in ("ann_1.h5", "raw.mrd"):
        assert main(["recon", str(folder / name), "-o", str(tmp_path / "single.nii.gz"), *options]) == 0
        assert np.array_equal(image_at(tmp_path / "images" / f"{name}.nii.gz"), image_at(tmp_path / "single.nii.gz"))


def test_what_failed_is_listed_and_the_status_is_1_until_it_is_mended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bob_1.h5").write_text("no scan")
    command = ["recon", str(folder), "-o", str(folder / "images"), *GRIDDING]
    for n_new in (1, 0):
        assert main(command) == 1
        shown = capsys.readouterr().out
        assert f"1 of 2 scans has its image in '{folder / 'images'}': {n_new} new" in shown
        assert "1 failed; the same again tries it anew:" in shown
        assert "bob_1.h5: 'bob_1.h5' is not an HDF5 file" not in shown
        assert "is not an HDF5 file" in shown.splitlines()[-1]
    SCAN.save(folder / "bob_1.h5")
    assert main(command) == 0


def test_other_options_are_refused_until_again_is_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recon", str(folder), "-o", str(folder / "images"), "--method", "cs", "--n-iterations"]
    assert main([*command, "2"]) == 0
    capsys.readouterr()
    assert main([*command, "3"]) == 2
    message = said(capsys)
    assert "'" + str(folder / "images") + "' has 2 images made from something else: " in message
    assert "n_iterations was 2, is 3" in message
    assert "or make them anew by --again." in message
    assert main([*command, "3", "--again"]) == 0
    assert "2 new" in capsys.readouterr().out


def test_raw_files_that_say_little_take_what_is_typed_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "raw"
    place.mkdir()
    for name in ("a", "b"):
        save_cfl(place / name, make_raw(SCAN))
    command = ["recon", str(place), "-o", str(tmp_path / "images"), *GRIDDING, "--pattern", "*_kspace.cfl"]
    shape = ["--image-shape", *map(str, SHAPE)]
    assert main([*command, *shape]) == 1
    assert "add --voxel-size Z Y X" in capsys.readouterr().out
    assert main([*command, *shape, "--voxel-size", "2", "2", "2"]) == 0
    names = {"a_kspace.cfl", "b_kspace.cfl"}
    assert written(tmp_path / "images") == {name + end for name in names for end in (".json", ".nii.gz")}
    save_cfl(place / "b", make_raw(make_scan(seed=2)))
    assert main([*command, *shape, "--voxel-size", "2", "2", "2"]) == 2
    message = said(capsys)
    assert "1 image made from something else: b_kspace.cfl (scan: b_kspace.cfl was [" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--workers", "2"], "--workers belongs to a folder"),
        (["--again"], "--again belongs to a folder"),
        (["--pattern", "*"], "--pattern belongs to a folder"),
    ],
)
def test_a_single_scan_takes_no_options_of_a_folder(
    options: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "image.nii"
    assert main(["recon", str(folder / "ann_1.h5"), "-o", str(output), *GRIDDING, *options]) == 2
    assert expected in said(capsys)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--pattern", "*.mat"], "No file in"),
        (["-o", "."], "is the folder of the scans. Give another"),
        (["-o", "nowhere/images"], "Make it first"),
        (["--weights", "w.safetensors"], "--weights belongs to --method mbdl"),
    ],
)
def test_what_cannot_be_is_one_message(
    options: list[str],
    expected: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["recon", ".", "-o", "images", *GRIDDING, *options]) == 2
    assert expected in said(capsys)
    assert written(folder) == {"ann_1.h5", "bob_1.h5"}


def test_stopped_it_says_how_far_it_came_and_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(A: object, kspace: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    command = ["recon", str(folder), "-o", str(folder / "images"), *GRIDDING]
    with monkeypatch.context() as patch:
        patch.setattr(recon_folder, "gridding", stop)
        stop.__qualname__ = "gridding"
        assert main(command) == 130
    assert "blockkit: stopped: 0 of 2 scans done in" in said(capsys)
    assert main(command) == 0


@pytest.mark.slow
def test_a_scan_that_will_not_fit_says_what_to_type(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bob_1.h5").unlink()
    monkeypatch.setattr(room, "free_bytes", lambda _: 10**4)
    weights = str(make_weights(tmp_path / "weights.safetensors"))
    command = ["recon", str(folder), "-o", str(tmp_path / "images"), "--weights", weights]
    assert main(command) == 1
    assert "To start all the same: --ignore-memory." in capsys.readouterr().out
    assert main([*command, "--ignore-memory"]) == 0
