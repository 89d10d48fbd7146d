import math

import numpy as np
import pytest
import torch

from blockkit.data.units import smallest_shape, standard_trajectory
from blockkit.physics.trajectory import radial_3d

SHAPE = (20, 16, 24)
NAMES = ("kx", "ky", "kz")


@pytest.fixture(scope="module")
def k():
    """Columns kx ky kz, cycles/FOV."""
    return radial_3d(200, 48, SHAPE).flip(1).numpy().astype(np.float64)


def test_columns_are_put_into_the_order_kz_ky_kx(k):
    result = standard_trajectory(k, NAMES, SHAPE)
    assert result.dtype == torch.float32
    assert torch.equal(result, radial_3d(200, 48, SHAPE))
    assert torch.equal(standard_trajectory(k[:, ::-1], ("kz", "ky", "kx"), SHAPE), result)


@pytest.mark.parametrize(("unit", "factor"), [("cycles/voxel", 1.0), ("radians/voxel", 2 * math.pi)])
def test_a_unit_per_voxel_is_named_in_the_error_and_converted_when_it_is_given(k, unit, factor):
    per_voxel = k / np.array(SHAPE[::-1]) * factor
    with pytest.raises(ValueError, match=f"That looks like {unit}: write unit='{unit}'"):
        standard_trajectory(per_voxel, NAMES, SHAPE)
    torch.testing.assert_close(standard_trajectory(per_voxel, NAMES, SHAPE, unit), radial_3d(200, 48, SHAPE))


def test_a_small_image_in_radians_is_named_too():
    k = radial_3d(50, 16, (4, 4, 4)).numpy() * 2 * np.pi / 4
    with pytest.raises(ValueError, match="radians/voxel"):
        standard_trajectory(k, NAMES, (4, 4, 4))


def test_a_unit_that_cannot_be_told_is_asked_for(k):
    with pytest.raises(ValueError, match=r"Which unit is that\? Write unit=\.\.\., one of cycles/FOV, cycles/voxel"):
        standard_trajectory(k / 8, NAMES, SHAPE)
    assert standard_trajectory(k / 8, NAMES, SHAPE, "cycles/FOV").abs().max() < 1.6


def test_columns_the_other_way_round_are_named(k):
    with pytest.raises(ValueError, match="the other way round: name them 'kx ky kz'"):
        standard_trajectory(k, ("kz", "ky", "kx"), SHAPE)


def test_density_weights_in_the_third_column_are_named_and_can_be_left_out(k):
    flat = radial_3d(60, 48, (1, 16, 24)).flip(1).numpy().astype(np.float64)
    flat[:, 2] = np.hypot(flat[:, 0], flat[:, 1])
    with pytest.raises(ValueError, match="holds density weights, name it -, as in 'kx ky -'"):
        standard_trajectory(flat, NAMES, (1, 16, 24))
    result = standard_trajectory(flat, ("kx", "ky", "-"), (1, 16, 24))
    torch.testing.assert_close(result, radial_3d(60, 48, (1, 16, 24)))


def test_two_columns_are_one_slice():
    flat = radial_3d(60, 48, (1, 16, 24)).flip(1).numpy()
    assert torch.equal(standard_trajectory(flat[:, :2], NAMES, (1, 16, 24)), radial_3d(60, 48, (1, 16, 24)))


def test_a_center_that_is_not_zero_is_named(k):
    with pytest.raises(ValueError, match="the center of k-space must be at 0, so subtract 10"):
        standard_trajectory(k + np.array([12, 8, 10]), NAMES, SHAPE)


def test_one_over_meters_is_named(k):
    with pytest.raises(ValueError, match=r"needs image_shape \(60, 48, 72\)\. If it is in 1/m, multiply"):
        standard_trajectory(3 * k, NAMES, SHAPE)


def test_numbers_that_are_not_finite_are_counted(k):
    broken = k.copy()
    broken[[3, 5], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="NaN or infinite at 2 samples"):
        standard_trajectory(broken, NAMES, SHAPE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("kx", "ky", "ky"), "are named 'kx ky ky'"),
        (("x", "y", "z"), "expected kx, ky and kz"),
        (("-", "-", "-"), "expected kx, ky and kz"),
        (("kx", "ky"), "has 3 columns, and 2 are named"),
    ],
)
def test_columns_that_are_not_named_rightly_are_refused(k, columns, message):
    with pytest.raises(ValueError, match=message):
        standard_trajectory(k, columns, SHAPE)


def test_a_unit_that_is_not_known_is_refused(k):
    with pytest.raises(ValueError, match="unit is '1/cm', expected one of 'cycles/FOV'"):
        standard_trajectory(k, NAMES, SHAPE, "1/cm")


def test_the_smallest_shape_holds_the_trajectory(k):
    assert smallest_shape(k[:, ::-1], None) == SHAPE
    assert smallest_shape(radial_3d(60, 48, (1, 16, 24)).numpy(), None) == (1, 16, 24)


@pytest.mark.parametrize(
    ("factor", "seen"), [(1 / 24, "cycles/voxel"), (math.pi / 12, "radians/voxel"), (0, "no number")]
)
def test_a_size_that_cannot_be_told_is_asked_for(k, factor, seen):
    with pytest.raises(ValueError, match=f"looks like {seen}.*Add image_shape"):
        smallest_shape(k[:, ::-1] * factor, None)
    with pytest.raises(ValueError, match="does not tell the image's size"):
        smallest_shape(k, "cycles/voxel")
