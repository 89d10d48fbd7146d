import itertools
import math

import numpy as np
import pytest
import pywt
import torch

from blockkit.classic.sparsity import Wavelet, crop, pad, soft_threshold
from blockkit.physics.linop import adjoint_error

DIVISIBLE = [(16, 32, 64), (28, 14, 1), (1, 1, 16), (1, 1, 1), (2, 3, 5)]
PADDED = [(15, 17, 31), (29, 1, 57), (9, 30, 2), (7, 61, 8)]
WAVELETS = ["haar", "db4", "db2"]


def complex_image(shape, dtype=torch.complex128, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("shape", DIVISIBLE + PADDED)
def test_wavelets_keep_inner_products_and_the_adjoint_undoes_them(shape, name):
    W = Wavelet(shape, name=name)
    assert adjoint_error(W) < 1e-13
    x, y = complex_image(shape), complex_image(shape, seed=1)
    torch.testing.assert_close(W.adjoint(W.forward(x)), x, rtol=1e-12, atol=1e-12)
    inner = torch.vdot(W.forward(x).flatten(), W.forward(y).flatten())
    torch.testing.assert_close(inner, torch.vdot(x.flatten(), y.flatten()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("shape", DIVISIBLE + PADDED)
def test_wavelets_on_their_padded_shape_are_orthonormal_both_ways(shape, name):
    W = Wavelet(Wavelet(shape, name=name).padded_shape, name=name)
    assert W.padded_shape == W.in_shape
    c = complex_image(W.out_shape)
    torch.testing.assert_close(W.forward(W.adjoint(c)), c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "n_levels"), [((64, 16, 1), (3, 1, 0)), ((13, 14, 112), (0, 1, 4))])
def test_each_axis_has_the_levels_that_pywavelets_allows_it(shape, n_levels):
    W = Wavelet(shape)
    assert W.n_levels == n_levels
    assert W.n_levels == tuple(pywt.dwt_max_level(n, 8) for n in shape)
    assert Wavelet(shape, n_levels=1).n_levels == tuple(min(1, level) for level in n_levels)
    x = complex_image(shape)
    assert torch.equal(Wavelet(shape, n_levels=0).forward(x), x)


@pytest.mark.parametrize("name", ["haar", "db4", "sym4", "coif1"])
def test_coefficients_are_those_of_pywavelets(name):
    x = complex_image((24, 48, 40))
    theirs, _ = pywt.coeffs_to_array(pywt.wavedecn(x.numpy(), name, mode="periodization", level=1))
    np.testing.assert_allclose(Wavelet(x.shape, name=name, n_levels=1).forward(x).numpy(), theirs, atol=1e-10)
    x = complex_image((32, 64, 96))
    theirs, _ = pywt.coeffs_to_array(pywt.wavedecn(x.numpy(), name, mode="periodization", level=2))
    np.testing.assert_allclose(Wavelet(x.shape, name=name, n_levels=2).forward(x).numpy(), theirs, atol=1e-10)


def test_a_smooth_image_has_few_large_coefficients_at_the_coarse_end():
    z, y, x = torch.meshgrid(*(torch.linspace(0, 2 * math.pi, 65)[:-1],) * 3, indexing="ij")
    image = torch.exp(1j * torch.sin(z) + 0.5j * torch.cos(y) * torch.sin(x)).to(torch.complex64)
    coefficients = Wavelet(image.shape).forward(image).abs()
    assert coefficients[:8, :8, :8].square().sum() > 0.999 * coefficients.square().sum()


@pytest.mark.parametrize("shape", [(16, 32, 14), (28, 1, 64)])
def test_a_shifted_transform_is_the_transform_of_the_rolled_image(shape):
    W, x, shift = Wavelet(shape), complex_image(shape), (1, 0, 3)
    torch.testing.assert_close(W.forward(x, shift), W.forward(x.roll(shift, (0, 1, 2))), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(W.adjoint(W.forward(x, shift), shift), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "name"), [((8, 4, 16), "haar"), ((15, 29, 1), "db4"), ((1, 1, 1), "db4"),
                                             ((4, 30, 14), "db2")])  # fmt: skip
def test_the_largest_coefficient_is_the_maximum_over_all_shifts(shape, name):
    W = Wavelet(shape, name=name)
    x = complex_image(shape)
    wide, wide_W = pad(x, W.padded_shape), Wavelet(W.padded_shape, name=name)
    shifts = itertools.product(*(range(2**level) for level in W.n_levels))
    largest = max(float(wide_W.forward(wide, shift).abs().max()) for shift in shifts)
    assert W.largest_coefficient(x) == pytest.approx(largest, rel=1e-12)


def test_random_shifts_cover_every_shift_that_matters_and_are_seeded():
    W = Wavelet((28, 14, 1))
    draws = [W.random_shift(generator) for generator in [torch.Generator().manual_seed(0)] for _ in range(200)]
    assert set(draws) == set(itertools.product(range(4), range(2), range(1)))
    generator = torch.Generator().manual_seed(0)
    assert [W.random_shift(generator) for _ in range(200)] == draws


def test_precision_follows_the_image_and_inputs_stay():
    x = complex_image((16, 15, 30), torch.complex64)
    before, W = x.clone(), Wavelet(x.shape)
    coefficients = W.forward(x)
    kept = coefficients.clone()
    assert coefficients.dtype == W.adjoint(coefficients).dtype == torch.complex64
    assert torch.equal(x, before)
    assert torch.equal(coefficients, kept)
    assert torch.linalg.vector_norm(W.adjoint(coefficients) - x) < 1e-6 * torch.linalg.vector_norm(x)
    small = Wavelet((1, 1, 1))
    one = torch.ones(1, 1, 1, dtype=torch.complex64)
    small.forward(one).mul_(2)
    assert one.item() == 1


@pytest.mark.parametrize("name", ["bior2.2", "dmey", "morl", "db99"])
def test_wavelets_that_are_not_orthonormal_are_refused(name):
    with pytest.raises(ValueError, match="expected an orthogonal wavelet"):
        Wavelet((16, 16, 16), name=name)


def test_wrong_images_are_refused():
    W = Wavelet((16, 15, 14))
    with pytest.raises(ValueError, match="expected"):
        W.forward(torch.zeros(14, 15, 16, dtype=torch.complex64))
    with pytest.raises(ValueError, match="coefficients has shape"):
        W.adjoint(torch.zeros(16, 15, 14, dtype=torch.complex64))
    with pytest.raises(TypeError, match="complex"):
        W.forward(torch.zeros(16, 15, 14))


def test_pad_and_crop_are_adjoint():
    x, y = complex_image((3, 1, 5)), complex_image((4, 2, 5), seed=1)
    left = torch.vdot(pad(x, y.shape).flatten(), y.flatten())
    torch.testing.assert_close(left, torch.vdot(x.flatten(), crop(y, x.shape).flatten()))
    assert pad(x, x.shape) is x


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.float64])
def test_the_soft_threshold_is_the_proximal_map_of_the_l1_norm(dtype):
    v, threshold = complex_image((4, 5, 6), dtype), 0.7
    x = soft_threshold(v, threshold)
    assert x.dtype == dtype
    kept = x != 0
    assert bool((v[~kept].abs() <= threshold).all())
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(v[kept] - x[kept], threshold * x[kept] / x[kept].abs())
    assert torch.equal(soft_threshold(v, 0.0), v)
    assert torch.equal(soft_threshold(torch.zeros_like(v), 0.0), torch.zeros_like(v))


def test_a_negative_threshold_is_refused():
    for threshold in (-1.0, math.nan):
        with pytest.raises(ValueError, match="threshold is"):
            soft_threshold(torch.ones(3), threshold)
