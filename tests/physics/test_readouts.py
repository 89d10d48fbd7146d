"""Choice of readouts, extent and field of view, and late gradients: laws of the Fourier transform and of indexing."""

import numpy as np
import pytest
import torch

from blockkit.physics.fourier import DirectFourier
from blockkit.physics.readouts import crop_kspace, delay_gradients, select_readouts, shift_fov
from blockkit.physics.trajectory import cones, radial_3d

SHAPE = (9, 12, 10)
SHAPES = [SHAPE, (1, 12, 10), (9, 1, 10)]


def random(shape, dtype=torch.complex128, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def example(n_readouts=12, n_readout=8, shape=SHAPE):
    return random((3, n_readouts * n_readout)), radial_3d(n_readouts, n_readout, shape).double()


def small_object(shape, margin=3):
    """An image that is zero near the edges, so that moving it takes nothing across them."""
    image = torch.zeros(shape, dtype=torch.complex128)
    inner = tuple(slice(margin, n - margin) if n > 1 else slice(None) for n in shape)
    image[inner] = random(image[inner].shape)
    return image


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (slice(None), list(range(12))),
        (slice(1, None, 4), [1, 5, 9]),
        ([3, 0, -1], [3, 0, 11]),
        (torch.tensor([7, 7]), [7, 7]),
        ([i % 3 == 0 for i in range(12)], [0, 3, 6, 9]),
        (torch.arange(12) < 2, [0, 1]),
    ],
)
def test_the_readouts_come_whole_and_in_the_order_asked_for(which, expected):
    kspace, k = example()
    chosen, where = select_readouts(kspace, k, 8, which)
    samples = [8 * number + j for number in expected for j in range(8)]
    assert torch.equal(chosen, kspace[:, samples])
    assert torch.equal(where, k[samples])


def test_time_frames_put_together_are_the_scan():
    kspace, k = example()
    frames = [select_readouts(kspace, k, 8, slice(first, first + 5)) for first in (0, 5, 10)]
    assert torch.equal(torch.cat([frame[0] for frame in frames], dim=1), kspace)
    assert torch.equal(torch.cat([frame[1] for frame in frames]), k)


def test_a_gate_and_its_opposite_share_the_readouts_out():
    kspace, k = example()
    phase = torch.rand(12, generator=torch.Generator().manual_seed(0))
    inhaled, exhaled = (select_readouts(kspace, k, 8, gate)[0] for gate in (phase < 0.4, phase >= 0.4))
    assert inhaled.shape[1] + exhaled.shape[1] == kspace.shape[1]
    torch.testing.assert_close(inhaled.norm() ** 2 + exhaled.norm() ** 2, kspace.norm() ** 2)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_field_of_view_moves_by_whole_voxels_as_the_image_is_cut(shape, dtype):
    k = radial_3d(20, 16, shape)
    image, voxels = small_object(shape), [2 if n > 1 else 0 for n in shape]
    moved = torch.roll(image, [-d for d in voxels], dims=(0, 1, 2))
    F = DirectFourier(k, shape)
    shifted = shift_fov(F(image)[None].to(dtype), k, [d / n for d, n in zip(voxels, shape, strict=True)])
    assert shifted.dtype == dtype
    assert relative(shifted[0], F(moved)) < (1e-6 if dtype == torch.complex64 else 1e-7)


def test_shifts_add_up_and_no_shift_changes_nothing():
    kspace, k = example()
    assert torch.equal(shift_fov(kspace, k, (0, 0, 0)), kspace)
    twice = shift_fov(shift_fov(kspace, k, (0.1, -0.2, 0.3)), k, (0.05, 0.4, -0.3))
    assert relative(twice, shift_fov(kspace, k, (0.15, 0.2, 0))) < 1e-12
    torch.testing.assert_close(twice.abs(), kspace.abs())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_field_of_view_twice_as_large_is_the_trajectory_times_two(shape):
    k, image = radial_3d(20, 16, shape).double(), random(shape)
    wide = [2 * n if n > 1 else 1 for n in shape]
    around = torch.zeros(wide, dtype=image.dtype)
    around[tuple(slice(w // 2 - n // 2, w // 2 - n // 2 + n) for w, n in zip(wide, shape, strict=True))] = image
    ratio = (around.numel() / image.numel()) ** 0.5
    assert relative(ratio * DirectFourier(2 * k, wide)(around), DirectFourier(k, shape)(image)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_cropping_keeps_exactly_what_a_coarser_image_can_explain(shape):
    kspace, k = example(40, 16, shape)
    coarse = [max(1, n // 2) for n in shape]
    cropped, inside = crop_kspace(kspace, k, coarse)
    assert (inside.abs() <= torch.tensor(coarse) / 2).all()
    assert 0.3 < len(inside) / len(k) < 0.7
    n_inside = sum(all(abs(a) <= n / 2 for a, n in zip(row, coarse, strict=True)) for row in k.tolist())
    assert cropped.shape == (3, n_inside)
    again, same = crop_kspace(cropped, inside, coarse)
    assert torch.equal(again, cropped)
    assert torch.equal(same, inside)
    assert torch.equal(crop_kspace(kspace, k, shape)[0], kspace)


@pytest.mark.parametrize("delay", [(0, 0, 0), (0.3, -0.7, 1.6), (-9.5, 20, 0)])
def test_a_late_gradient_moves_a_straight_spoke_by_its_steps(delay):
    k = radial_3d(12, 8, SHAPE).double()
    steps = k.view(12, 8, 3).diff(dim=1)[:, :1].expand(-1, 8, -1).reshape(-1, 3)
    moved = delay_gradients(k, 8, delay)
    torch.testing.assert_close(moved, k - torch.tensor(delay) * steps, rtol=0, atol=1e-5)


def test_a_delay_of_whole_samples_takes_the_sample_before_on_curves_too():
    k = cones(9, 20, SHAPE)
    moved = delay_gradients(k, 20, (1, 0, -2)).view(9, 20, 3)
    k = k.view(9, 20, 3)
    assert torch.equal(moved[:, 1:, 0], k[:, :-1, 0])
    assert torch.equal(moved[:, :, 1], k[:, :, 1])
    assert torch.equal(moved[:, :-2, 2], k[:, 2:, 2])
    assert moved.dtype == k.dtype


def test_delays_of_straight_spokes_are_undone_by_their_negatives():
    k = radial_3d(12, 8, SHAPE).double()
    torch.testing.assert_close(delay_gradients(delay_gradients(k, 8, (0.4, -1, 2)), 8, (-0.4, 1, -2)), k)


KSPACE, K = example()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: select_readouts(KSPACE, K, 7, [0]), ValueError, "n_readout is 7, and there are 96 samples"),
        (lambda: select_readouts(KSPACE, K, 8, [12]), ValueError, "expected readouts 0 to 11"),
        (lambda: select_readouts(KSPACE, K, 8, [True, False]), ValueError, "one boolean for each of the 12"),
        (lambda: select_readouts(KSPACE, K, 8, torch.zeros(12, dtype=torch.bool)), ValueError, "at least one readout"),
        (lambda: select_readouts(KSPACE, K, 8, [0.5]), TypeError, "expected booleans or whole numbers"),
        (lambda: select_readouts(KSPACE, K[:8], 8, [0]), ValueError, r"expected \(sample, 3\) = \(96, 3\)"),
        (lambda: crop_kspace(KSPACE, K + 50, SHAPE), ValueError, "no sample within"),
        (lambda: crop_kspace(KSPACE, K, (9, 12)), ValueError, "expected three"),
        (lambda: crop_kspace(KSPACE.real, K, SHAPE), TypeError, "kspace has dtype torch.float64"),
        (lambda: shift_fov(KSPACE, K, (0, 1)), ValueError, "expected three finite numbers"),
        (lambda: shift_fov(KSPACE, K, (0, 1, np.inf)), ValueError, "expected three finite numbers"),
        (lambda: shift_fov(KSPACE, K, "abc"), TypeError, "shift is 'a', expected a number"),
        (lambda: delay_gradients(K, 1, (0, 0, 0)), ValueError, "at least 2 samples"),
        (lambda: delay_gradients(K[:, :2], 8, (0, 0, 0)), ValueError, r"expected \(sample, 3\)"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
