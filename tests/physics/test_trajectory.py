"""Trajectories and the density compensation, against geometry and against the exact answers that are known."""

import math

import pytest
import torch
from operators import scattered

from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT
from blockkit.physics.trajectory import cones, radial_3d, spiral_phyllotaxis, stack_of_stars


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 20, 14), (32, 5, 7)], ids=str)
@pytest.mark.parametrize("n_readout", [16, 17, 1])
def test_spokes_go_straight_through_the_center(shape, n_readout):
    k = radial_3d(13, n_readout, shape)
    assert k.shape == (13 * n_readout, 3)
    assert k.dtype == torch.float32
    spokes = k.view(13, n_readout, 3).double() / torch.tensor(shape)
    assert (spokes[:, n_readout // 2] == 0).all()
    radius = (torch.arange(n_readout) - n_readout // 2) / n_readout
    directions = spokes[:, 0] / radius[0] if n_readout > 1 else torch.zeros(13, 3)
    torch.testing.assert_close(spokes, radius[:, None] * directions[:, None].double(), atol=1e-7, rtol=0)
    if n_readout > 1:
        torch.testing.assert_close(directions.norm(dim=1), torch.ones(13).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 20, 14)], ids=str)
def test_each_axis_reaches_its_own_edge_and_not_further(shape):
    largest = radial_3d(4000, 32, shape).abs().amax(dim=0) / torch.tensor(shape)
    assert (largest <= 0.5).all()
    assert (largest > 0.498).all()


@pytest.mark.parametrize("n_spokes", [50, 377, 2000])
@pytest.mark.parametrize("first", [0, 91])
def test_any_spokes_in_a_row_cover_the_sphere_evenly(n_spokes, first):
    k = radial_3d(first + n_spokes, 2, (8, 8, 8)).view(-1, 2, 3)[first:, 0].double() / -4
    moments = k.T @ k / n_spokes
    assert (moments - torch.eye(3) / 3).abs().max() < 1.5 / n_spokes**0.5 / 3


def test_the_angles_are_the_golden_means():
    k = -radial_3d(3, 2, (8, 8, 8)).view(3, 2, 3)[:, 0].double() / 4
    height, azimuth = k[:, 0], torch.atan2(k[:, 1], k[:, 2]) / (2 * math.pi) % 1
    torch.testing.assert_close(height[1:].tolist(), [0.465571, 0.931142], atol=1e-5, rtol=0)
    torch.testing.assert_close(azimuth[1:].tolist(), [0.682328, 0.364656], atol=1e-5, rtol=0)


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_a_slice_is_covered_by_golden_angles_within_it(thin):
    shape = [12, 12, 12]
    shape[thin] = 1
    k = radial_3d(30, 4, shape).view(30, 4, 3)[:, 0].double()
    assert (k[:, thin] == 0).all()
    a, b = (k[:, axis] for axis in range(3) if axis != thin)
    angle = torch.atan2(-a, -b) % math.pi
    steps = (angle[1:] - angle[:-1]) % math.pi
    torch.testing.assert_close(steps, torch.full((29,), math.radians(111.246)).double(), atol=1e-4, rtol=0)


def test_a_row_and_a_point_have_spokes_too():
    assert radial_3d(2, 6, (1, 6, 1)).view(2, 6, 3)[:, :, 1].tolist() == [[-3, -2, -1, 0, 1, 2]] * 2
    assert (radial_3d(2, 6, (1, 1, 1)) == 0).all()


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="n_spokes is 0"):
        radial_3d(0, 8, (8, 8, 8))
    with pytest.raises(TypeError, match=r"n_readout is 8\.0"):
        radial_3d(8, 8.0, (8, 8, 8))
    with pytest.raises(ValueError, match="expected three"):
        radial_3d(8, 8, (8, 8))
    with pytest.raises(ValueError, match="n_iterations is 0"):
        density_compensation(radial_3d(8, 8, (8, 8, 8)), (8, 8, 8), n_iterations=0)


@pytest.mark.parametrize("n_spokes", [1, 5, 9, 31, 200])
@pytest.mark.parametrize("n_planes", [1, 8, 9])
def test_a_stack_of_stars_shares_its_spokes_out_evenly(n_spokes, n_planes):
    k = stack_of_stars(n_spokes, 6, (n_planes, 12, 10)).view(n_spokes, 6, 3)
    assert k.dtype == torch.float32
    assert (k[:, :, 0] == k[:, :1, 0]).all()
    planes, counts = k[:, 0, 0].unique(return_counts=True)
    assert torch.equal(planes, planes.round())
    assert counts.max() - counts.min() <= 1
    assert len(planes) == min(n_spokes, n_planes)
    assert 0 in planes
    assert planes.min() >= -(n_planes // 2)
    assert planes.max() <= (n_planes - 1) // 2
    gaps = planes.diff()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_spokes_of_a_stack_lie_in_the_plane_at_golden_angles_and_reach_the_edge():
    k = stack_of_stars(400, 20, (8, 12, 10)).double().view(400, 20, 3)
    torch.testing.assert_close(k[..., 1:].reshape(-1, 2), radial_3d(400, 20, (1, 12, 10))[:, 1:].double())
    assert (k[:, 10, 1:] == 0).all()
    largest = k.abs().amax(dim=(0, 1))
    assert (largest <= torch.tensor([4, 6, 5])).all()
    assert (largest > torch.tensor([3.99, 5.99, 4.99])).all()


@pytest.mark.parametrize("shape", [(1, 12, 10), (9, 1, 10), (8, 12, 1), (1, 1, 8)], ids=str)
def test_thin_axes_of_a_stack_of_stars_have_no_extent(shape):
    k = stack_of_stars(30, 8, shape)
    thin = [axis for axis in range(3) if shape[axis] == 1]
    assert (k[:, thin] == 0).all()
    assert all(k[:, axis].abs().max() > 0.4 * shape[axis] for axis in range(3) if axis not in thin)
    if shape[0] == 1:
        assert torch.equal(k, radial_3d(30, 8, shape))


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 20, 14), (1, 12, 10), (9, 1, 10), (8, 12, 1), (1, 1, 8)], ids=str)
def test_cones_that_do_not_turn_are_spokes(shape):
    torch.testing.assert_close(cones(40, 17, shape, n_turns=0), radial_3d(40, 17, shape), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 20, 14), (1, 18, 14)], ids=str)
def test_interleaves_wind_on_cones_with_samples_equally_far_apart(shape):
    n = 2 * max(shape)
    k = cones(11, n, shape).double().view(11, n, 3) / torch.tensor([size if size > 1 else 1 for size in shape])
    assert (k[:, n // 2] == 0).all()
    torch.testing.assert_close(k[:, 1:], -k[:, 1:].flip(1), atol=1e-7, rtol=0)
    radius = k.norm(dim=2)
    torch.testing.assert_close(radius, radius[:1].expand_as(radius), atol=1e-6, rtol=0)
    assert 0.499 < radius.max() <= 0.5 + 1e-7
    slant = (k[..., 0] / radius)[:, n // 2 + 1 :]
    torch.testing.assert_close(slant, slant[:, :1].expand_as(slant), atol=1e-6, rtol=0)
    steps = k.diff(dim=1).norm(dim=2) * max(shape)
    assert steps.min() > 0.65
    assert steps.max() < 0.67


def test_an_interleaf_on_the_equator_makes_the_turns_that_were_asked_for():
    k = cones(1, 2001, (20, 20, 20), n_turns=0.4).double()
    angle = torch.atan2(k[1001:, 1], k[1001:, 2])
    assert float(angle.diff().sum().abs()) == pytest.approx(0.4 * 2 * math.pi, rel=0.01)


@pytest.mark.parametrize("n_interleaves", [50, 377, 2000])
def test_any_number_of_interleaves_covers_each_shell_evenly(n_interleaves):
    k = cones(n_interleaves, 16, (8, 8, 8)).double().view(-1, 16, 3)
    for sample in (0, 2, 5, 13):
        u = k[:, sample] / k[:, sample].norm(dim=1, keepdim=True)
        assert (u.T @ u / n_interleaves - torch.eye(3) / 3).abs().max() < 1.5 / n_interleaves**0.5 / 3


@pytest.mark.parametrize("n_interleaves", [21, 144])
def test_spirals_in_a_plane_cover_each_circle_evenly(n_interleaves):
    k = cones(n_interleaves, 16, (1, 8, 8)).double().view(-1, 16, 3)
    for sample in (0, 4, 13):
        angle = torch.atan2(k[:, sample, 1], k[:, sample, 2]).remainder(math.pi).sort().values
        gaps = torch.cat([angle, angle[:1] + math.pi]).diff() * n_interleaves / math.pi
        assert gaps.max() < 2


def directions(k, n_readout, shape):
    """Return the unit vector of each spoke, from its first sample."""
    return -2 * k.view(-1, n_readout, 3)[:, 0].double() / torch.tensor(shape)


def test_spokes_of_a_phyllotaxis_advance_by_the_golden_angle_from_pole_to_equator():
    u = directions(spiral_phyllotaxis(500, 6, (12, 10, 14)), 6, (12, 10, 14))
    polar, azimuth = u[:, 0].clamp(-1, 1).arccos(), torch.atan2(u[:, 1], u[:, 2])
    share = torch.arange(500, dtype=torch.float64) / 500
    torch.testing.assert_close(polar, math.pi / 2 * share.sqrt(), atol=1e-3, rtol=0)
    steps = torch.rad2deg(azimuth[1:].diff()) % 360
    torch.testing.assert_close(steps, torch.full((498,), 137.508).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("n_interleaves", [21, 34])
def test_interleaves_of_a_phyllotaxis_share_its_spokes_and_wind_in_small_steps(n_interleaves):
    shape = (12, 12, 12)
    whole = directions(spiral_phyllotaxis(n_interleaves * 30, 6, shape), 6, shape)
    u = directions(spiral_phyllotaxis(n_interleaves * 30, 6, shape, n_interleaves=n_interleaves), 6, shape)
    arms = u.view(n_interleaves, 30, 3)
    torch.testing.assert_close(arms.movedim(1, 0).flatten(0, 1), whole)
    assert (arms[:, :, 0].diff(dim=1) < 0).all()  # from the pole down
    assert arms[:, -1, 0].max() < 0.06
    turn = (arms[:, 1:] * arms[:, :-1]).sum(dim=2).clamp(-1, 1).arccos()
    assert torch.rad2deg(turn).median() < 10
    assert torch.rad2deg((whole[1:] * whole[:-1]).sum(dim=1).clamp(-1, 1).arccos()).median() > 100


@pytest.mark.parametrize("n_spokes", [377, 2000])
def test_directions_of_a_phyllotaxis_are_as_dense_as_they_are_said_to_be(n_spokes):
    u = directions(spiral_phyllotaxis(n_spokes, 6, (12, 12, 12), n_interleaves=13), 6, (12, 12, 12))
    along = 0.5 - 2 / math.pi**2  # the mean square of the cosine of the polar angle, by its density
    expected = torch.diag(torch.tensor([along, (1 - along) / 2, (1 - along) / 2], dtype=torch.float64))
    assert (u.T @ u / n_spokes - expected).abs().max() < 1.5 / n_spokes**0.5 / 3


@pytest.mark.parametrize("shape", [(1, 12, 10), (9, 1, 10), (8, 12, 1)], ids=str)
def test_in_a_plane_a_phyllotaxis_has_golden_angles_in_the_order_of_its_interleaves(shape):
    assert torch.equal(spiral_phyllotaxis(31, 8, shape), radial_3d(31, 8, shape))
    order = [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    expected = radial_3d(10, 8, shape).view(10, 8, 3)[order].reshape(-1, 3)
    assert torch.equal(spiral_phyllotaxis(10, 8, shape, n_interleaves=4), expected)


def test_more_interleaves_than_spokes_are_refused():
    with pytest.raises(ValueError, match="n_interleaves is 9, expected at most n_spokes = 8"):
        spiral_phyllotaxis(8, 8, (8, 8, 8), n_interleaves=9)


@pytest.mark.parametrize("make", [stack_of_stars, cones, spiral_phyllotaxis])
def test_wrong_counts_of_the_other_trajectories_are_refused(make):
    with pytest.raises(ValueError, match="is 0, expected at least 1"):
        make(0, 8, (8, 8, 8))
    with pytest.raises(TypeError, match=r"n_readout is 8\.0"):
        make(8, 8.0, (8, 8, 8))
    with pytest.raises(ValueError, match="expected three"):
        make(8, 8, (8, 8))


@pytest.mark.parametrize("n_turns", [-0.1, math.nan, math.inf])
def test_turns_that_cannot_be_made_are_refused(n_turns):
    with pytest.raises(ValueError, match="n_turns is"):
        cones(8, 8, (8, 8, 8), n_turns=n_turns)


@pytest.mark.parametrize("shape", [(8, 12, 10), (9, 7, 11), (1, 16, 15), (5, 1, 8), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_full_cartesian_sampling_weighs_one_each(shape, offset):
    grid = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in shape)).view(-1, 3)
    room = torch.tensor([n > 1 and n % 2 == 1 for n in shape])
    weights = density_compensation(grid + offset * room, shape)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.ones(len(grid)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("reach", [0.24, 1.57])
def test_small_k_is_not_taken_for_another_unit_on_the_doubled_grid(reach):
    k = scattered((16, 16, 16), 200)
    weights = density_compensation(k * (reach / k.abs().amax(dim=0)), (16, 16, 16))
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


def test_a_trajectory_in_another_unit_is_named_before_it_is_weighed():
    with pytest.raises(ValueError, match="cycles per voxel"):
        density_compensation(scattered((16, 20, 24), 200) / torch.tensor([16, 20, 24]), (16, 20, 24))


def test_twice_the_samples_weigh_half_each():
    k = radial_3d(100, 24, (12, 12, 12))
    once, twice = (density_compensation(trajectory, (12, 12, 12)) for trajectory in (k, torch.cat([k, k])))
    torch.testing.assert_close(twice[: len(k)] + twice[len(k) :], once, rtol=0.02, atol=0)


@pytest.mark.parametrize(("shape", "n_spokes"), [((20, 20, 20), 1300), ((1, 32, 32), 100)], ids=["k^2", "ramp"])
def test_dense_radial_follows_the_law_of_its_geometry(shape, n_spokes):
    k = radial_3d(n_spokes, 2 * shape[2], shape)
    radius = k.norm(dim=1)
    area = 4 * math.pi * radius**2 if shape[0] > 1 else 2 * math.pi * radius
    expected = area * 0.5 / (2 * n_spokes)
    weights = density_compensation(k, shape)
    for low, high in ((1.4, 2.9), (2.9, 4.4), (4.4, 0.35 * shape[2])):
        shell = (radius > low) & (radius < high)
        assert abs(float(weights[shell].sum() / expected[shell].sum()) - 1) < 0.03


def test_the_weights_add_up_to_the_volume_they_cover():
    shape = (24, 18, 20)
    weights = density_compensation(radial_3d(1500, 48, shape), shape)
    assert math.pi / 6 < float(weights.sum()) / math.prod(shape) < 1.2 * math.pi / 6


@pytest.mark.parametrize("shape", [(15, 9, 12), (1, 20, 17), (18, 18, 18)], ids=str)
@pytest.mark.parametrize("n_spokes", [1, 30, 400])
def test_weights_are_positive_and_finite(shape, n_spokes):
    weights = density_compensation(radial_3d(n_spokes, 2 * max(shape), shape), shape)
    assert weights.shape == (n_spokes * 2 * max(shape),)
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


def test_weights_level_the_density_of_scattered_samples():
    shape = (9, 12, 10)
    k = scattered(shape, 250)
    residual = [density_error(k, shape, density_compensation(k, shape, n_iterations=n)) for n in (1, 3, 8)]
    assert residual[0] > residual[1] > residual[2]
    assert residual[2] < 0.05


def density_error(k, shape, weights):
    """Return the RMS of Psi w - 1, with Psi written out over pairs of samples from the whole window."""
    kernel = torch.ones(len(k), len(k), dtype=torch.float64)
    for axis, n in enumerate(shape):
        bell = torch.exp(-4 * ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n) ** 2)
        phase = torch.polar(torch.ones(()).double(), 2 * math.pi * (k[:, axis, None] * torch.arange(n) / n))
        transform = (phase[:, None] * phase[None].conj() * bell).sum(dim=-1)
        kernel *= transform.abs() ** 2 / n / bell.square().sum()
    return float((kernel @ weights.double() - 1).square().mean().sqrt())


@pytest.mark.parametrize(
    ("make", "n_readouts", "error"),
    [(radial_3d, 1200, 0.02), (stack_of_stars, 565, 0.013), (cones, 628, 0.022), (spiral_phyllotaxis, 1200, 0.02)],
)
def test_gridding_with_the_weights_returns_the_image_at_its_own_scale(make, n_readouts, error):
    shape = (18, 20, 16)
    k = make(n_readouts, 40, shape)
    r = torch.cartesian_prod(*((torch.arange(n) - n // 2) / n for n in shape)).norm(dim=1).view(shape)
    image = ((r < 0.4) * torch.exp(-((r / 0.2) ** 2))).to(torch.complex64)
    F = NUFFT(k, shape)
    gridded = F.adjoint(density_compensation(k, shape) * F(image))
    assert float((gridded - image).norm() / image.norm()) < error


@pytest.mark.parametrize(
    ("make", "part"), [(stack_of_stars, math.pi / 4), (cones, math.pi / 6), (spiral_phyllotaxis, math.pi / 6)]
)
def test_the_other_trajectories_cover_the_volume_they_promise(make, part):
    shape = (18, 20, 16)
    weights = density_compensation(make(700, 40, shape), shape)
    assert part < float(weights.sum()) / math.prod(shape) < 1.2 * part


def test_repeated_samples_at_the_center_share_one_weight():
    alone = density_compensation(torch.zeros(1, 3), (16, 15, 14))
    shared = density_compensation(torch.zeros(50, 3), (16, 15, 14))
    torch.testing.assert_close(shared, alone.expand(50) / 50, rtol=1e-3, atol=0)
