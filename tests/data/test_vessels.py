import numpy as np
import pytest

from blockkit.data.render import Grid, cover, draw_tubes, ellipsoid, make_grid
from blockkit.data.vessels import grow_tree, spread_points


def make_square_grid(shape, step):
    axes = [((np.arange(n) - n // 2) * h).astype(np.float32) for n, h in zip(shape, step, strict=True)]
    return Grid(*axes, step)


def grow(n_points, seed=0):
    rng = np.random.default_rng(seed)
    points = spread_points(n_points, np.array([-50.0, -40, 10]), np.array([60.0, 40, 90]), rng)
    return points, grow_tree(points, np.array([0.0, 0, 0]), 0.8, rng)


@pytest.mark.parametrize("n_points", [1, 2, 3, 17, 400])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_branching_obeys_murrays_law(n_points, seed):
    _, tree = grow(n_points, seed)
    for node in range(1, len(tree.nodes)):
        branches = tree.radii[tree.parents == node]
        if len(branches):
            assert tree.radii[node] ** 3 == pytest.approx((branches**3).sum(), rel=1e-12)
            assert len(branches) <= 2


@pytest.mark.parametrize("n_points", [1, 2, 17, 400])
def test_a_tree_ends_in_every_point_and_nowhere_else(n_points):
    points, tree = grow(n_points)
    ends = tree.nodes[np.setdiff1d(np.arange(len(tree.nodes)), tree.parents)]
    assert len(ends) == n_points
    np.testing.assert_allclose(np.sort(ends, axis=0), np.sort(points, axis=0), atol=1e-9)
    np.testing.assert_allclose(tree.radii[1], 0.8 * n_points ** (1 / 3))


def test_parents_come_before_children_up_to_the_root():
    _, tree = grow(120)
    assert tree.parents[0] == -1
    assert (tree.parents[1:] < np.arange(1, len(tree.parents))).all()
    assert (tree.parents[1:] >= 0).all()


def test_points_are_spread_evenly_over_the_box():
    low, high = np.array([0.0, -5, 2]), np.array([8.0, 5, 4])
    points = spread_points(4000, low, high, np.random.default_rng(2))
    counts, _ = np.histogramdd(points, bins=4, range=list(zip(low, high, strict=True)))
    assert (points >= low).all()
    assert (points <= high).all()
    assert counts.min() > 0.8 * 4000 / 64
    assert counts.max() < 1.2 * 4000 / 64


@pytest.mark.parametrize("radius", [0.2, 0.5, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("step", [(1.0, 1.0, 1.0), (1.2, 0.9, 1.0)])
def test_a_tube_keeps_its_volume_however_thin_it_is(radius, step):
    grid = make_square_grid((60, 25, 27), step)
    part = np.zeros(grid.shape, np.float32)
    start, end = np.array([[-60.0, 0.3, -0.2]]), np.array([[60.0, 0.9, 0.7]])
    draw_tubes(part, grid, start.astype(np.float32), end.astype(np.float32), np.array([radius], np.float32))
    area = part[10:50].sum(axis=(1, 2)).mean() * step[1] * step[2]
    assert area == pytest.approx(np.pi * radius**2, rel=0.04)


def test_a_tube_is_the_same_whichever_end_it_is_drawn_from():
    grid = make_square_grid((15, 14, 13), (1.0, 1.0, 1.0))
    a, b = np.array([[-3.0, 2.0, -4.1]], np.float32), np.array([[4.0, -1.5, 3.0]], np.float32)
    there, back = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    draw_tubes(there, grid, a, b, np.array([1.4], np.float32))
    draw_tubes(back, grid, b, a, np.array([1.4], np.float32))
    np.testing.assert_allclose(there, back, atol=1e-4)
    assert there.max() == 1
    assert there.min() == 0


def test_a_tube_outside_the_grid_draws_nothing_and_one_across_the_edge_does_not_wrap():
    grid = make_square_grid((9, 8, 7), (1.0, 1.0, 1.0))
    part = np.zeros(grid.shape, np.float32)
    draw_tubes(part, grid, np.array([[40.0, 0, 0]]), np.array([[50.0, 0, 0]]), np.array([2.0]))
    assert part.max() == 0
    draw_tubes(part, grid, np.array([[0.0, 0, -9]]), np.array([[0.0, 0, -3]]), np.array([1.0]))
    assert part[4, 4, 0] > 0.9
    assert part[:, :, 3:].max() == 0


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (0.4, -0.3, 0.2)])
def test_an_ellipsoid_keeps_its_volume(center):
    grid = make_square_grid((26, 24, 22), (1.0, 1.0, 1.0))
    part = cover(ellipsoid(grid.points, center, (8.0, 7.0, 6.0)), 1.0)
    assert part.sum() == pytest.approx(4 / 3 * np.pi * 8 * 7 * 6, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 30), (5, 96, 7), (33, 21, 40)])
def test_subvoxels_average_to_the_voxel_centers(shape):
    grid, factors = make_grid(shape)
    for axis, n, factor in zip((grid.z, grid.y, grid.x), shape, factors, strict=True):
        centers = axis.reshape(n, factor).mean(axis=1)
        assert centers[n // 2] == pytest.approx(0, abs=1e-3)
        if n > 1:
            np.testing.assert_allclose(np.diff(centers), np.diff(centers)[0], rtol=1e-3)
