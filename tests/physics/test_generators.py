"""Trajectories of mri-nufft in this library's convention; and what holds for every trajectory, whoever made it."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from blockkit.physics.coils import simulate_maps
from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT, DirectFourier
from blockkit.physics.generators import floret, from_mrinufft
from blockkit.physics.linop import adjoint_error
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import cones, radial_3d, spiral_phyllotaxis, stack_of_stars

needs_mrinufft = pytest.mark.skipif(importlib.util.find_spec("mrinufft") is None, reason="needs mri-nufft")
TRAJECTORIES = [radial_3d, spiral_phyllotaxis, stack_of_stars, cones, pytest.param(floret, marks=needs_mrinufft)]


def shots(n_shots=5, n_samples=7, n_axes=3):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (n_shots, n_samples, n_axes))


@pytest.mark.parametrize("make", TRAJECTORIES)
def test_every_trajectory_makes_operators_that_obey_their_laws(make):
    shape = (9, 7, 8)
    k = make(60, 18, shape)
    assert k.shape == (60 * 18, 3)
    assert k.dtype == torch.float32
    assert (k.abs().amax(dim=0) <= torch.tensor(shape) / 2).all()
    F, A = NUFFT(k, shape), Encoding(k, simulate_maps(2, shape), normal="toeplitz")
    assert adjoint_error(F) < 1e-13
    assert adjoint_error(A) < 1e-13
    x = torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    exact = DirectFourier(k, shape)(x)
    assert float((F(x) - exact).norm() / exact.norm()) < 1e-4
    expected = A.adjoint(A(x))
    assert float((A.normal(x) - expected).norm() / expected.norm()) < 1e-4
    w = density_compensation(k, shape)
    assert torch.isfinite(w).all()
    assert (w > 0).all()


def test_a_trajectory_of_mrinufft_is_scaled_to_the_fov_and_its_columns_turned():
    array = shots()
    k = from_mrinufft(array, (8, 12, 10))
    assert k.dtype == torch.float32
    expected = array.reshape(-1, 3)[:, ::-1] * (8, 12, 10)
    torch.testing.assert_close(k, torch.from_numpy(expected).float())
    assert torch.equal(from_mrinufft(torch.from_numpy(array), (8, 12, 10)), k)
    assert torch.equal(from_mrinufft(array.reshape(-1, 3), (8, 12, 10)), k)


def test_two_columns_are_those_of_a_slice():
    array = shots(n_axes=2)
    k = from_mrinufft(array, (1, 12, 10)).double()
    assert (k[:, 0] == 0).all()
    torch.testing.assert_close(k[:, 1:], torch.from_numpy(array.reshape(-1, 2)[:, ::-1] * (12, 10)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("array", "shape", "message"),
    [
        (shots(n_axes=2), (8, 12, 10), r"two columns, kx and ky, .* Write \(1, 12, 10\)"),
        (shots() * 2 * math.pi, (8, 12, 10), r"Radians per voxel\? Pass trajectory / \(2 \* math\.pi\)"),
        (shots() * 100, (8, 12, 10), r"expected cycles per voxel, -0\.5\.\.0\.5\.$"),
        (shots() * math.nan, (8, 12, 10), "reaches nan"),
        (shots(n_axes=4), (8, 12, 10), r"shape \(5, 7, 4\), expected \(shot, sample, 3\)"),
        (shots(n_shots=0), (8, 12, 10), "expected"),
        (shots(), (12, 10), r"For a single slice, write \(1, y, x\)"),
    ],
)
def test_what_is_no_trajectory_of_mrinufft_is_refused(array, shape, message):
    with pytest.raises(ValueError, match=message):
        from_mrinufft(array, shape)


@needs_mrinufft
@pytest.mark.parametrize("n_hubs", [1, 3])
def test_floret_goes_from_the_center_to_the_edge_of_the_ellipsoid_through_equal_shells(n_hubs):
    shape, n = (18, 20, 16), 90
    k = floret(n, 60, shape, n_hubs=n_hubs).double().view(n, 60, 3) / torch.tensor(shape)
    radius = k.norm(dim=2)
    assert (radius[:, 0] == 0).all()
    torch.testing.assert_close(radius[:, -1], torch.full((n,), 0.5).double(), atol=1e-6, rtol=0)
    assert (radius.diff(dim=1) > 0).all()
    inside = (radius < 0.25).double().mean()
    assert 0.2 < inside < 0.35  # a quarter, as of the area of a disk
    u = k[:, -1] / 0.5
    even = torch.eye(3).double() / 3 if n_hubs == 3 else torch.diag(torch.tensor([0.5, 0.25, 0.25]).double())
    assert (u.T @ u / n - even).abs().max() < 0.05


@needs_mrinufft
@pytest.mark.parametrize("n_hubs", [1, 3])
def test_gridding_a_floret_scan_returns_the_image_at_its_own_scale(n_hubs):
    shape = (18, 20, 16)
    k = floret(600, 60, shape, n_hubs=n_hubs)
    r = torch.cartesian_prod(*((torch.arange(n) - n // 2) / n for n in shape)).norm(dim=1).view(shape)
    image = ((r < 0.4) * torch.exp(-((r / 0.2) ** 2))).to(torch.complex64)
    F, w = NUFFT(k, shape), density_compensation(k, shape)
    assert float((F.adjoint(w * F(image)) - image).norm() / image.norm()) < 0.022
    assert math.pi / 6 < float(w.sum()) / math.prod(shape) < 1.2 * math.pi / 6


@needs_mrinufft
@pytest.mark.filterwarnings("ignore")  # it imports all NUFFT libraries that it finds
def test_any_generator_of_mrinufft_can_be_brought_here():
    from mrinufft.trajectories import initialize_3D_seiffert_spiral

    k = from_mrinufft(initialize_3D_seiffert_spiral(40, 64), (10, 12, 14))
    assert k.shape == (40 * 64, 3)
    assert adjoint_error(NUFFT(k, (10, 12, 14))) < 1e-13


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((90, 20, (1, 12, 12)), {}, "FLORET fills a volume. For one slice, use cones"),
        ((91, 20, (12, 12, 12)), {}, "n_interleaves is 91, expected a multiple of n_hubs = 3, such as 93"),
        ((90, 20, (12, 12, 12)), {"n_hubs": 2}, "n_hubs is 2, expected 1 or 3"),
        ((90, 20, (12, 12, 12)), {"n_turns": 0}, "n_turns is 0, expected a number above 0"),
        ((90, 1, (12, 12, 12)), {}, "n_readout is 1, expected at least 2"),
    ],
)
def test_florets_that_cannot_be_made_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        floret(*arguments, **options)


def test_without_mrinufft_it_is_said_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "mrinufft", None)
    monkeypatch.setitem(sys.modules, "mrinufft.trajectories", None)
    with pytest.raises(ImportError, match="floret needs mri-nufft, which cannot be imported: pip install mri-nufft"):
        floret(90, 20, (12, 12, 12))
