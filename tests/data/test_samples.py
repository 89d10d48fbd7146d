"""The files of data_samples/ are those that its README lists, and the raw scan is the same in each format."""

import hashlib
from pathlib import Path

import pytest
import torch

from blockkit.data.arrays import load_arrays
from blockkit.data.cfl import load_cfl
from blockkit.data.ismrmrd import load_ismrmrd

FOLDER = Path(__file__).parents[2] / "data_samples"
SHAPE = (20, 16, 20)


def rows():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {cells[0]: cells for cells in table[2:]}


def test_every_sample_is_listed_with_its_bytes_and_hash():
    listed = rows()
    assert set(listed) == {path.name for path in FOLDER.iterdir() if path.suffix not in (".md", ".py", "")}
    for name, cells in listed.items():
        content = (FOLDER / name).read_bytes()
        assert cells[-2:] == [str(len(content)), hashlib.sha256(content).hexdigest()], name


@pytest.fixture(scope="module")
def ismrmrd():
    return load_ismrmrd(FOLDER / "raw_ismrmrd.h5")


def test_the_raw_scan_has_noise_and_no_maps(ismrmrd):
    assert (ismrmrd.image_shape, ismrmrd.n_coils, ismrmrd.n_readout) == (SHAPE, 2, 40)
    assert ismrmrd.noise.shape == (2, 256)
    assert ismrmrd.maps is None


@pytest.mark.parametrize("name", ["raw_bart", "raw_numpy.npz", "raw_matlab.mat"])
def test_the_raw_scan_is_the_same_in_each_format(ismrmrd, name):
    options = {"voxel_size": ismrmrd.voxel_size, "image_shape": SHAPE}
    if name == "raw_bart":
        files = {kind: FOLDER / f"raw_bart_{kind}" for kind in ("kspace", "trajectory", "maps", "noise")}
        raw = load_cfl(**files, **options)
        assert torch.equal(raw.noise, ismrmrd.noise)
        assert raw.with_maps(raw.maps).image_shape == SHAPE
    elif name == "raw_numpy.npz":
        arrays = {"kspace": "ksp: spoke readout coil", "trajectory": "coord: spoke readout (kx ky kz)"}
        raw = load_arrays(FOLDER / name, arrays, unit="cycles/voxel", **options)
    else:
        arrays = {"kspace": "data: readout spoke coil", "trajectory": "k: readout spoke (kx ky kz)"}
        raw = load_arrays(FOLDER / name, arrays, unit="radians/voxel", **options)
    assert torch.equal(raw.kspace, ismrmrd.kspace)
    assert raw.n_readout == 40
    torch.testing.assert_close(raw.trajectory, ismrmrd.trajectory, atol=1e-5, rtol=0)
