import dataclasses

import pytest
import torch
from raw_scans import SHAPE, VOXEL, make_raw

from blockkit.data.raw import RawScan
from blockkit.data.scan import Scan
from blockkit.physics.channels import compress_coils, mix_coils
from blockkit.physics.readouts import select_readouts


@pytest.fixture(scope="module")
def raw():
    return make_raw()


def test_with_maps_a_raw_scan_is_a_scan(raw):
    scan = raw.with_maps(raw.maps)
    assert isinstance(scan, Scan)
    assert scan.image_shape == raw.image_shape == SHAPE
    assert scan.voxel_size == raw.voxel_size == VOXEL
    assert scan.kspace is raw.kspace
    assert scan.reference is None


def test_it_says_what_it_holds(raw):
    assert (raw.n_coils, raw.n_samples, raw.n_readout) == (2, 12 * 28, 28)
    assert raw.fov == (12 * 1.5, 10 * 2.0, 14 * 2.5)
    assert "noise and maps" in repr(raw)
    assert "neither noise nor maps" in repr(dataclasses.replace(raw, noise=None, maps=None))


def test_a_trajectory_and_an_image_shape_of_two_axes_are_one_slice(raw):
    flat = RawScan(raw.kspace, raw.trajectory[:, 1:], (10, 14), VOXEL)
    assert flat.image_shape == (1, 10, 14)
    assert torch.equal(flat.trajectory[:, 1:], raw.trajectory[:, 1:])
    assert not flat.trajectory[:, 0].any()
    assert flat.with_maps(torch.ones(2, 1, 10, 14, dtype=torch.complex64)).image_shape == (1, 10, 14)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kspace": torch.ones(2, 5, dtype=torch.complex64)}, ValueError, "5 samples, and trajectory 336"),
        ({"kspace": torch.ones(336, dtype=torch.complex64)}, ValueError, r"pass kspace\[None\]"),
        ({"kspace": [1, 2]}, TypeError, "kspace is a list"),
        ({"trajectory": torch.ones(336, 3, dtype=torch.float64)}, TypeError, "trajectory.float"),
        ({"trajectory": torch.full((336, 3), torch.nan)}, ValueError, "NaN"),
        ({"maps": torch.ones(2, 3, 4, 5, dtype=torch.complex64)}, ValueError, "with image_shape"),
        ({"maps": torch.ones(3, *SHAPE, dtype=torch.complex64)}, ValueError, "maps 3"),
        ({"noise": torch.ones(3, 9, dtype=torch.complex64)}, ValueError, "noise has shape"),
        ({"noise": torch.ones(2, 9)}, TypeError, "noise has dtype"),
        ({"noise": torch.full((2, 9), torch.inf, dtype=torch.complex64)}, ValueError, "noise has 18 values"),
        ({"n_readout": 27}, ValueError, "a divisor of the 336 samples"),
        ({"n_readout": 0}, ValueError, "n_readout is 0"),
        ({"voxel_size": (1.0, 2.0)}, ValueError, "three positive numbers"),
        ({"image_shape": (4,)}, ValueError, "image_shape has 1 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(raw, change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(raw, **change)


def test_maps_that_do_not_fit_are_refused(raw):
    with pytest.raises(ValueError, match=r"expected \(coil, z, y, x\) = \(2, 12, 10, 14\)"):
        raw.with_maps(torch.ones(2, 12, 10, 13, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\(2, 12, 10, 14\)\. If coils were combined, pass .*\(maps, kspace="):
        raw.with_maps(raw.maps[:1])
    with pytest.raises(TypeError, match="maps is a list"):
        raw.with_maps([1])


def test_with_maps_takes_what_has_become_of_the_samples(raw):
    kspace, matrix = compress_coils(raw.kspace, 1)
    kspace, trajectory = select_readouts(kspace, raw.trajectory, raw.n_readout, slice(0, None, 2))
    scan = raw.with_maps(mix_coils(matrix, raw.maps), kspace=kspace, trajectory=trajectory)
    assert scan.kspace is kspace
    assert scan.trajectory is trajectory
    assert scan.n_coils == 1
    assert scan.voxel_size == raw.voxel_size
    with pytest.raises(ValueError, match="kspace has 168 samples, and trajectory 336"):
        raw.with_maps(scan.maps, kspace=kspace)
    with pytest.raises(TypeError, match="kspace is a list"):
        raw.with_maps(scan.maps, kspace=[1])
