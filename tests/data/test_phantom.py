from functools import cache

import numpy as np
import pytest
import torch

from blockkit.data.painter import columns
from blockkit.data.phantom import Person, pulmonary_phantom
from blockkit.data.render import make_grid
from blockkit.data.thorax import Thorax

SHAPE = (72, 54, 72)  # voxels of 5 mm, drawn without subvoxels


@cache
def get_volume(seed):
    return pulmonary_phantom(SHAPE, seed=seed)


@pytest.fixture
def volume():
    return get_volume(1)


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 1, 1), (1, 40, 31), (33, 1, 20), (20, 17, 1), (2, 3, 5)])
def test_any_shape_gives_a_finite_image_of_that_shape(shape):
    image = pulmonary_phantom(shape, seed=3)
    assert image.shape == shape
    assert image.dtype == torch.complex64
    assert image.isfinite().all()
    assert 0.2 < image.abs().max() < 1.3


@pytest.mark.parametrize(
    ("seed", "shape"),
    [
        (1, (24, 18, 24)),
        pytest.param(5, (32, 24, 32), marks=pytest.mark.slow),
        pytest.param(0, (21, 30, 17), marks=pytest.mark.slow),
    ],
)
def test_one_seed_is_one_person_on_any_grid(shape, seed):
    coarse, fine = pulmonary_phantom(shape, seed=seed), pulmonary_phantom(tuple(3 * n for n in shape), seed=seed)
    shift = [1 - ((3 * n) // 2 - 3 * (n // 2)) for n in shape]
    nz, ny, nx = shape
    blocks = torch.roll(fine, shift, (0, 1, 2)).reshape(nz, 3, ny, 3, nx, 3).mean(dim=(1, 3, 5))
    inner = (slice(1, -1),) * 3
    difference = torch.linalg.vector_norm((coarse - blocks)[inner])
    assert difference < 0.04 * torch.linalg.vector_norm(blocks[inner])


def test_a_seed_repeats_the_person_and_others_differ(volume):
    assert torch.equal(volume, pulmonary_phantom(SHAPE, seed=1))
    for seed in (0, 2):
        difference = torch.linalg.vector_norm(get_volume(seed).abs() - volume.abs())
        assert difference > 0.15 * torch.linalg.vector_norm(volume)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_of_an_angiogram(seed):
    image = get_volume(seed).abs()
    grid, _ = make_grid(SHAPE)
    person = get_thorax(seed)
    p = person.warp(grid.points)
    lung = torch.from_numpy(np.minimum(person.lung(p, -1), person.lung(p, 1)) < -8)
    outside = torch.from_numpy(person.body(p) > 8)
    assert 0.02 < image[lung].median() < 0.2  # dark lungs with bright vessels in them
    assert image[lung].quantile(0.995) > 0.45
    assert image[outside].max() == 0
    assert 0.8 < image.max() < 1.3


def get_thorax(seed):
    person = np.random.SeedSequence([seed, 0x7409A]).spawn(6)[5]
    return Thorax(np.random.default_rng(person))


@pytest.mark.parametrize("seed", range(3))
def test_vessels_stay_in_the_lungs_and_the_mediastinum(seed):
    image = get_volume(seed).abs().numpy()
    grid, _ = make_grid(SHAPE)
    person = get_thorax(seed)
    p = person.warp(grid.points)
    wall = (person.cage(p) > 1) & (p[0] > -80) & (np.abs(p[2]) > 40)  # below the vessels of the neck and arms
    assert image[wall].max() < 0.55


@pytest.mark.parametrize("seed", range(2))
def test_each_artery_ends_in_its_lung_and_they_reach_all_of_it(seed):
    grid, _ = make_grid((12, 9, 12))
    painter = Person(grid, seed)
    painter.paint_body()
    painter.paint_lungs()
    for side, tree in painter.artery_trees.items():
        ends = tree.nodes[np.setdiff1d(np.arange(len(tree.nodes)), tree.parents)]
        distance = painter.thorax.lung(columns(np.stack(painter.thorax.warp(columns(ends)), axis=1)), side)
        assert len(ends) > 300
        assert distance.max() < 0
        places = np.random.default_rng(0).uniform([-120, -80, 20], [100, 80, 115], (500, 3)) * [1, 1, side]
        inside = painter.thorax.unwarp(places[painter.thorax.lung(columns(places), side) < -5])
        nearest = np.linalg.norm(inside[:, None] - ends[None], axis=2).min(axis=1)
        assert nearest.max() < 25  # mm


def test_the_head_is_first_the_front_is_first_and_the_right_is_first(volume):
    image = volume.abs()
    nz, ny, nx = image.shape
    width_at_neck = (image[5].amax(dim=0) > 0.05).sum()
    width_at_belly = (image[-12].amax(dim=0) > 0.05).sum()
    assert width_at_neck < 0.8 * width_at_belly
    heart = image[nz // 2 + 6, : ny // 2 + 4]
    left, right = heart[:, nx // 2 + 6 : nx // 2 + 24], heart[:, nx // 2 - 24 : nx // 2 - 6]
    assert left.mean() > 1.2 * right.mean()  # the heart lies to the left
    liver, spine = image[-18, ny // 2 - 4, : nx // 2].mean(), image[nz // 2, ny // 2 :, nx // 2]
    assert liver > 0.1
    assert (spine < 0.15).any()  # the spinal canal is behind


def test_the_phase_is_smooth(volume):
    bright = volume.abs() > 0.1
    for axis in range(3):
        step = volume.narrow(axis, 1, volume.shape[axis] - 1) * volume.narrow(axis, 0, volume.shape[axis] - 1).conj()
        both = bright.narrow(axis, 1, volume.shape[axis] - 1) & bright.narrow(axis, 0, volume.shape[axis] - 1)
        assert step.angle().abs()[both].max() < 0.5
    assert volume[bright].angle().std() > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_deformation_is_undone_exactly(seed):
    person = get_thorax(seed)
    nodes = np.random.default_rng(0).uniform([-170, -120, -170], [170, 120, 170], (200, 3))
    back = np.stack(person.warp(columns(person.unwarp(nodes))), axis=1)
    np.testing.assert_allclose(back, nodes, atol=1e-2)


def test_bad_shapes_and_seeds_are_refused():
    with pytest.raises(ValueError, match=r"write \(1, y, x\)"):
        pulmonary_phantom((64, 64))
    with pytest.raises(ValueError, match="at least 1"):
        pulmonary_phantom((0, 4, 4))
    with pytest.raises(ValueError, match="seed is -1"):
        pulmonary_phantom((4, 4, 4), seed=-1)
