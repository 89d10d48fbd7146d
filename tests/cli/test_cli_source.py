"""Raw files of each format become the same image from the command line as from the library."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from blockkit.cli import main
from blockkit.data.cfl import save_cfl
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.opening import make_scan as ready
from blockkit.physics.sense import Encoding
from tests.cli.small import SHAPE, make_raw, make_scan, said

RAW = make_raw(make_scan())
VOXEL = ["--voxel-size", *map(str, RAW.voxel_size)]
AXES = ["--with", "kspace=ksp: readout spoke coil", "trajectory=coord: readout spoke (kx ky kz)"]
SHAPE_ = ["--image-shape", *map(str, SHAPE)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    save_ismrmrd(tmp_path / "raw.h5", RAW)
    save_cfl(tmp_path / "raw", RAW)
    (tmp_path / "elsewhere").mkdir()
    save_cfl(tmp_path / "elsewhere" / "x", RAW)
    arrays = {
        "ksp": RAW.kspace.reshape(3, 60, 24).permute(2, 1, 0).numpy(),
        "coord": RAW.trajectory.flip(1).reshape(60, 24, 3).permute(1, 0, 2).numpy(),
        "noise": RAW.noise.numpy(),
    }
    np.savez(tmp_path / "raw.npz", **arrays)
    savemat(tmp_path / "raw.mat", arrays)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("raw.h5", []),
        ("raw_kspace.cfl", [*VOXEL, *SHAPE_]),
        ("raw_kspace", [*VOXEL, *SHAPE_]),
        ("elsewhere/x_kspace.hdr", [*VOXEL, *SHAPE_, "--with", "trajectory=raw_trajectory", "noise=raw_noise.cfl"]),
        ("raw.npz", [*AXES, "noise=noise: coil sample", *VOXEL, *SHAPE_]),
        ("raw.mat", [*AXES, "noise=noise: coil sample", *VOXEL, *SHAPE_, "--unit", "cycles/FOV"]),
    ],
)
def test_each_format_gives_the_image_of_the_library(
    name: str, options: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert main(["recon", name, "--method", "gridding", "-o", "image.nii.gz", "--n-coils", "2", *options]) == 0
    scan = ready(RAW, n_coils=2)
    A = Encoding(scan.trajectory, scan.maps)
    expected = A.adjoint(A.dcf * scan.kspace).abs().numpy()
    image = np.asanyarray(nibabel.load(files / "image.nii.gz").dataobj).transpose(2, 1, 0)
    assert np.linalg.norm(image - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("raw_kspace.cfl", [], "add --voxel-size Z Y X"),
        ("raw_noise.cfl", VOXEL, "--with trajectory=FILE"),
        ("raw.npz", VOXEL, "--with kspace='NAME"),
        ("raw.npz", [*VOXEL, "--with", "kspace=ksp: coil"], "--with kspace='NAME"),
        ("raw.npz", [*VOXEL, "--with", "ksp"], "--with has 'ksp'"),
        ("raw.npz", [*VOXEL, "--with", "kspace=", "trajectory=b: c"], "--with has 'kspace='"),
        ("raw.npz", [*VOXEL, "--with", "kspace=absent: coil spoke readout", AXES[2]], "no array 'absent'"),
        ("raw.h5", VOXEL, "a ISMRMRD file, which says that itself: leave --voxel-size out"),
        ("raw.h5", AXES, "leave --with out"),
        ("raw.h5", ["--n-coils", "0"], "n_coils is 0"),
        ("image.nii", [], "an image in NIfTI, expected a scan"),
        ("absent.npz", VOXEL, "absent.npz"),
    ],
)
def test_what_is_missing_or_too_much_is_one_message(
    name: str, options: list[str], expected: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "image.nii").write_bytes(b"")
    output = files / "image.nii.gz"
    assert main(["recon", str(files / name), "--method", "gridding", "-o", str(output), *options]) == 2
    assert expected in said(capsys)
    assert not output.exists()


def test_info_of_a_folder_says_which_scans_are_bad(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "bad.h5").write_text("no scan")
    assert main(["info", str(files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 files of 2 subjects" in lines[0]
    assert "BAD" in lines[1]
    assert "10 x 12 x 8 voxels, 3 coils" in lines[2]
