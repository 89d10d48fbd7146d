import dataclasses
import warnings

import numpy as np
import pytest
import torch

from blockkit.data.band import limit_band
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan
from blockkit.physics.coils import FOV_MM
from blockkit.physics.fourier import NUFFT
from blockkit.physics.trajectory import cones, radial_3d, stack_of_stars


def make_blob(shape, width=0.05, center=(0.04, -0.03, 0.02)):
    """A Gaussian, all but band-limited and far from the edges, at a place in units of the field of view."""
    result = torch.ones((), dtype=torch.complex64)
    for n, c in zip(shape, center, strict=True):
        place = (torch.arange(n) - n // 2) / n - c if n > 1 else torch.zeros(1)
        result = result[..., None] * torch.exp(-(place**2) / (2 * width**2))
    return result


def encode(scan):
    F = NUFFT(scan.trajectory, scan.image_shape, tolerance=1e-5)
    return torch.stack([F.forward(coil_map * scan.reference) for coil_map in scan.maps])


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


GRIDS = [
    ((20, 18, 22), (30, 27, 33)),
    ((21, 19, 18), (32, 30, 37)),
    ((22, 20, 24), (55, 41, 48)),
    ((1, 20, 22), (1, 31, 33)),
    ((19, 1, 20), (40, 1, 30)),
    ((20, 22, 1), (30, 33, 1)),
]


@pytest.mark.parametrize(("image_shape", "fine_shape"), GRIDS)
def test_kspace_of_a_band_limited_volume_is_that_of_its_reference(image_shape, fine_shape):
    scan = simulate_scan(make_blob(fine_shape, width=0.075), image_shape, n_coils=1, n_spokes=40, noise=0.0)
    assert relative(encode(scan), scan.kspace) < 1e-3
    assert relative(scan.reference, make_blob(image_shape, width=0.075)) < 1e-3


@pytest.mark.parametrize("make", [stack_of_stars, cones])
@pytest.mark.parametrize(("image_shape", "fine_shape"), GRIDS)
def test_another_trajectory_is_sampled_as_the_radial_one_is(make, image_shape, fine_shape):
    k = make(40, 2 * max(image_shape), image_shape)
    scan = simulate_scan(make_blob(fine_shape, width=0.075), image_shape, n_coils=1, noise=0.0, trajectory=k)
    assert torch.equal(scan.trajectory, k)
    assert relative(encode(scan), scan.kspace) < 1e-3


def test_the_radial_trajectory_handed_in_gives_the_same_scan_as_none():
    volume = make_blob((24, 18, 15))
    default = simulate_scan(volume, (16, 12, 10), n_coils=2)
    given = simulate_scan(volume, (16, 12, 10), n_coils=2, trajectory=radial_3d(600, 32, (16, 12, 10)).double())
    for name in ("kspace", "trajectory", "maps", "reference"):
        assert torch.equal(getattr(default, name), getattr(given, name))


@pytest.mark.parametrize(
    ("trajectory", "round_axes"),
    [
        (radial_3d(300, 32, (16, 12, 10)), (0, 1, 2)),
        (cones(300, 32, (16, 12, 10)), (0, 1, 2)),
        (stack_of_stars(300, 32, (16, 12, 10)), (1, 2)),
        (torch.tensor([[-8.0, -6.0, -5.0], [0.0, 0.0, 0.0]]), ()),
    ],
    ids=["radial", "cones", "stack of stars", "corners"],
)
def test_the_reference_keeps_the_region_that_was_sampled_and_no_more(trajectory, round_axes):
    volume = torch.randn(25, 18, 15, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    reference = simulate_scan(volume, (16, 12, 10), n_coils=1, trajectory=trajectory).reference
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(reference)))
    radius = torch.zeros(())
    for axis, n in enumerate(reference.shape):
        radius = radius[..., None] + (2 * (torch.arange(n) - n // 2) / n) ** 2 * (axis in round_axes)
    assert (spectrum[radius > 1.001].abs() < 1e-4 * spectrum.abs().max()).all()
    assert spectrum[radius < 0.99].abs().min() > 1e-3 * spectrum.abs().mean()


def test_with_coils_the_reference_explains_the_noiseless_kspace():
    scan = simulate_scan(pulmonary_phantom((72, 54, 72), seed=2), (48, 36, 40), n_coils=2, n_spokes=60, noise=0.0)
    assert relative(encode(scan), scan.kspace) < 5e-3


def test_noise_has_the_stated_deviation_in_each_part():
    volume = make_blob((30, 27, 33))
    clean, noisy = (
        simulate_scan(volume, (20, 18, 22), n_coils=2, n_spokes=100, noise=s, seed=5).kspace for s in (0, 0.3)
    )
    expected = 0.3 * clean.abs().square().mean().sqrt()
    noise = noisy - clean
    torch.testing.assert_close(noise.real.std(), expected, rtol=0.05, atol=0)
    torch.testing.assert_close(noise.imag.std(), expected, rtol=0.05, atol=0)
    assert abs(torch.corrcoef(torch.stack([noise.real.flatten(), noise.imag.flatten()]))[0, 1]) < 0.05
    assert abs(torch.vdot(noise[0], noise[1])) < 0.05 * noise[0].norm() * noise[1].norm()


def test_a_seed_repeats_the_scan_and_another_changes_coils_and_noise():
    volume = make_blob((18, 15, 12))
    first, same, other = (simulate_scan(volume, (12, 10, 8), n_coils=2, n_spokes=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.kspace, same.kspace)
    assert torch.equal(first.maps, same.maps)
    assert not torch.allclose(first.maps, other.maps, atol=0.01)
    assert not torch.allclose(first.kspace, other.kspace)


def test_the_reference_has_nothing_outside_the_sampled_ellipsoid():
    torch.manual_seed(0)
    volume = torch.randn(30, 21, 24, dtype=torch.complex64)
    reference = limit_band(volume, (20, 13, 16))
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(reference)))
    radius = sum(
        (2 * (torch.arange(n) - n // 2) / n).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
        for axis, n in enumerate(reference.shape)
    )
    assert spectrum[radius > 1.001].abs().max() < 1e-4 * spectrum.abs().max()
    assert spectrum[radius < 0.99].abs().min() > 1e-3 * spectrum.abs().mean()


@pytest.mark.parametrize("region", ["ellipsoid", "cylinder", "box"])
@pytest.mark.parametrize("shape", [(8, 7, 6), (9, 1, 5), (1, 4, 3)])
def test_band_limiting_keeps_a_constant(shape, region):
    volume = torch.full(tuple(2 * n for n in shape), 2 - 1j, dtype=torch.complex64)
    torch.testing.assert_close(limit_band(volume, shape, region), torch.full(shape, 2 - 1j, dtype=torch.complex64))


def test_an_unknown_region_is_refused():
    with pytest.raises(ValueError, match="region is 'ball', expected one of 'ellipsoid', 'cylinder', 'box'"):
        limit_band(make_blob((8, 8, 8)), (4, 4, 4), "ball")


def test_shapes_sizes_and_spokes_are_those_asked_for():
    scan = simulate_scan(make_blob((24, 18, 15)), (16, 12, 10), n_coils=5, n_spokes=7)
    assert scan.image_shape == (16, 12, 10)
    assert scan.n_coils == 5
    assert scan.kspace.shape == (5, 7 * 32)
    assert scan.trajectory.shape == (7 * 32, 3)
    assert scan.voxel_size == pytest.approx([fov / n for fov, n in zip(FOV_MM, (16, 12, 10), strict=True)])
    assert "(16, 12, 10)" in repr(scan)
    assert len(repr(scan)) < 120


def test_data_made_on_the_image_grid_warns_of_the_inverse_crime():
    with pytest.warns(UserWarning, match=r"Inverse crime.*Pass a volume of at least \(12, 15, 18\)"):
        scan = simulate_scan(make_blob((8, 10, 12)), n_coils=2, n_spokes=4)
    assert scan.image_shape == (8, 10, 12)
    with pytest.warns(UserWarning, match="Inverse crime"):
        simulate_scan(make_blob((12, 14, 18)), (8, 10, 12), n_coils=2, n_spokes=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate_scan(make_blob((12, 15, 18)), (8, 10, 12), n_coils=2, n_spokes=4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"volume": torch.ones(8, 8, 8)}, TypeError, r"Write volume\.to\(torch\.complex64\)"),
        ({"volume": torch.ones(8, 8, dtype=torch.complex64)}, ValueError, r"\(z, y, x\)\. .*pass volume\[None\]"),
        ({"volume": torch.ones(1, 8, 8, 8, dtype=torch.complex64)}, ValueError, r"expected \(z, y, x\)\."),
        ({"volume": [[1.0]]}, TypeError, "expected a torch.Tensor"),
        ({"volume": torch.full((8, 8, 8), torch.nan + 0j)}, ValueError, "NaN"),
        ({"image_shape": (9, 4, 4)}, ValueError, "coarser than image_shape"),
        ({"image_shape": (4, 4)}, ValueError, "expected three"),
        ({"noise": -0.1}, ValueError, r"noise is -0\.1"),
        ({"noise": float("nan")}, ValueError, "noise is nan"),
        ({"noise": "low"}, TypeError, "noise is 'low', expected a number"),
        ({"n_coils": True}, TypeError, "n_coils is True, expected a whole number"),
        ({"n_coils": 0}, ValueError, "n_coils is 0"),
        ({"n_spokes": 0}, ValueError, "n_spokes is 0"),
        ({"trajectory": torch.zeros(9, 3)}, ValueError, "n_spokes is 3 and trajectory is given too"),
        ({"n_spokes": None, "trajectory": torch.zeros(3, 9)}, ValueError, r"Write trajectory\.T"),
        ({"n_spokes": None, "trajectory": torch.full((9, 3), 2.5)}, ValueError, "trajectory reaches"),
        ({"seed": -3}, ValueError, "seed is -3"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(change, error, message):
    good = {"volume": make_blob((8, 8, 8)), "image_shape": (4, 4, 4), "n_coils": 2, "n_spokes": 3}
    with pytest.raises(error, match=message):
        simulate_scan(**{**good, **change})


def test_numpy_integers_count_like_any_others():
    volume = make_blob((8, 8, 8))
    scan = simulate_scan(volume, np.array([4, 4, 4]), n_coils=np.int64(2), n_spokes=np.uint8(3), seed=np.int32(1))
    assert torch.equal(scan.kspace, simulate_scan(volume, (4, 4, 4), n_coils=2, n_spokes=3, seed=1).kspace)


def make_scan(n_coils=2, shape=(3, 4, 5), n_samples=7):
    generator = torch.Generator().manual_seed(0)
    return Scan(
        torch.randn(n_coils, n_samples, dtype=torch.complex64, generator=generator),
        torch.rand(n_samples, 3, generator=generator) - 0.5,
        torch.randn(n_coils, *shape, dtype=torch.complex64, generator=generator),
        (1.5, 2.0, 2.5),
        reference=torch.randn(shape, dtype=torch.complex64, generator=generator),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kspace": torch.ones(7, dtype=torch.complex64)}, ValueError, r"pass kspace\[None\]"),
        ({"kspace": torch.ones(2, 8, dtype=torch.complex64)}, ValueError, "8 samples, and trajectory 7"),
        ({"kspace": torch.ones(3, 7, dtype=torch.complex64)}, ValueError, "3 coils, and maps 2"),
        ({"kspace": torch.ones(2, 7, dtype=torch.complex128)}, TypeError, r"kspace\.to\(torch\.complex64\)"),
        ({"kspace": torch.ones(2, 7)}, TypeError, "kspace has dtype torch.float32"),
        ({"kspace": torch.full((2, 7), complex(0, torch.nan))}, ValueError, "14 values that are NaN"),
        ({"trajectory": torch.ones(3, 7)}, ValueError, r"expected \(sample, 3\)"),
        ({"trajectory": torch.ones(7, 3, dtype=torch.float64)}, TypeError, r"trajectory\.float\(\)"),
        ({"trajectory": torch.full((7, 3), torch.inf)}, ValueError, "infinite"),
        ({"maps": torch.ones(3, 4, 5, dtype=torch.complex64)}, ValueError, r"pass maps\[None\]"),
        ({"maps": torch.ones(2, 0, 4, 5, dtype=torch.complex64)}, ValueError, "at least one"),
        ({"reference": torch.ones(5, 4, 3, dtype=torch.complex64)}, ValueError, "another order"),
        ({"reference": torch.ones(4, 5, dtype=torch.complex64)}, ValueError, r"pass reference\[None\]"),
        ({"voxel_size": (1.0, 2.0)}, ValueError, "three positive numbers"),
        ({"voxel_size": (1.0, 2.0, -1.0)}, ValueError, "three positive numbers"),
        ({"voxel_size": 2.0}, ValueError, "three positive numbers"),
    ],
)
def test_a_scan_that_does_not_fit_together_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(make_scan(), **change)


def test_a_scan_may_have_no_reference_and_cannot_be_changed():
    scan = dataclasses.replace(make_scan(), reference=None)
    assert scan.reference is None
    assert "reference=no" in repr(scan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scan.voxel_size = (1.0, 1.0, 1.0)
