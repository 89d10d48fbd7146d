import numpy as np
import pytest
import torch

from blockkit.physics.coils import FOV_MM, simulate_maps

SHAPES = [(12, 9, 10), (7, 11, 5), (1, 13, 8), (9, 1, 6), (1, 1, 4), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_coils", [1, 2, 5, 8])
def test_the_root_of_the_sum_of_squares_is_one_everywhere(shape, n_coils):
    maps = simulate_maps(n_coils, shape)
    assert maps.shape == (n_coils, *shape)
    assert maps.dtype == torch.complex64
    torch.testing.assert_close(torch.linalg.vector_norm(maps, dim=0), torch.ones(shape), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_coils", [1, 3, 8])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_finer_grid_samples_the_same_coils(n_coils, factor):
    shape = (8, 6, 7)
    fine = simulate_maps(n_coils, tuple(factor * n for n in shape), seed=4)
    first = [(factor * n) // 2 - factor * (n // 2) for n in shape]
    same_places = fine[:, first[0] :: factor, first[1] :: factor, first[2] :: factor]
    torch.testing.assert_close(same_places, simulate_maps(n_coils, shape, seed=4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_coils", [1, 2, 3, 6, 8, 20])
@pytest.mark.parametrize("seed", [0, 7])
def test_maps_change_slowly(n_coils, seed):
    shape = (36, 27, 36)  # voxels of 10 mm
    maps = simulate_maps(n_coils, shape, seed=seed)
    _, y, x = np.meshgrid(*[(np.arange(n) - n // 2) * f / n for n, f in zip(shape, FOV_MM, strict=True)], indexing="ij")
    body = torch.from_numpy((x / 170) ** 2 + (y / 120) ** 2 < 1)
    steps = [maps.diff(dim=axis).abs().amax(dim=0) for axis in (1, 2, 3)]
    inside = [step[body.narrow(axis, 0, body.shape[axis] - 1)].max() for axis, step in enumerate(steps)]
    assert max(float(step.max()) for step in steps) < 0.4
    assert max(float(step) for step in inside) < 0.15


def test_each_coil_sees_its_own_part_of_the_body():
    maps = simulate_maps(8, (24, 18, 24))
    unfolding = torch.linalg.svdvals(maps.flatten(1))
    assert unfolding[-1] > 0.05 * unfolding[0]
    assert maps.abs().amax(dim=(1, 2, 3)).min() > 0.5


def test_one_coil_has_magnitude_one_and_a_phase():
    maps = simulate_maps(1, (10, 8, 6))
    torch.testing.assert_close(maps.abs(), torch.ones(1, 10, 8, 6), atol=1e-6, rtol=0)
    assert maps.angle().std() > 1e-3


def test_the_seed_decides_the_coils():
    shape = (6, 5, 4)
    torch.testing.assert_close(simulate_maps(4, shape, seed=3), simulate_maps(4, shape, seed=3), atol=0, rtol=0)
    assert (simulate_maps(4, shape, seed=3) - simulate_maps(4, shape, seed=4)).abs().max() > 0.05


def test_no_coil_and_a_flat_shape_are_refused():
    with pytest.raises(ValueError, match=r"n_coils is 0, expected at least 1"):
        simulate_maps(0, (4, 4, 4))
    with pytest.raises(ValueError, match=r"write \(1, y, x\)"):
        simulate_maps(2, (4, 4))
    with pytest.raises(ValueError, match="seed is -1"):
        simulate_maps(2, (4, 4, 4), seed=-1)
