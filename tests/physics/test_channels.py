"""Prewhitening and coil compression, against what the noise and the singular values are known to be."""

import numpy as np
import pytest
import torch

from blockkit.physics.channels import compress_coils, mix_coils, outer_samples, prewhiten, whitening_matrix
from blockkit.physics.coils import simulate_maps
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

every_precision = pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])


def random(shape, dtype=torch.complex64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def correlated(n_coils, n_samples, dtype=torch.complex64, seed=0, unit=1.0):
    """Noise of coils that couple and differ in gain a thousandfold."""
    mix = random((n_coils, n_coils), torch.complex128, seed=seed + 100) * torch.logspace(-2, 1, n_coils)[:, None]
    return (unit * mix @ random((n_coils, n_samples), torch.complex128, seed)).to(dtype)


def covariance(noise):
    noise = noise.to(torch.complex128)
    return noise @ noise.mH / noise.shape[1]


@every_precision
@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("n_coils", [1, 8, 32])
def test_the_noise_that_was_measured_comes_out_white_to_rounding(n_coils, unit, dtype):
    noise = correlated(n_coils, 2000, dtype, unit=unit)
    white = mix_coils(whitening_matrix(noise), noise)
    assert white.dtype == dtype
    rounding = 1e-3 if dtype == torch.complex64 else 1e-9
    assert (covariance(white) - torch.eye(n_coils)).abs().max() < rounding


@pytest.mark.parametrize("n_samples", [1000, 16000])
def test_other_noise_of_the_same_coils_comes_out_white_to_sampling_error(n_samples):
    both = correlated(8, 2 * n_samples, torch.complex128)
    noise, kspace = both[:, :n_samples], both[:, n_samples:]
    white, matrix = prewhiten(kspace, noise)
    assert torch.equal(white, mix_coils(matrix, kspace))
    error = (covariance(white) - torch.eye(8)).abs().square().mean().sqrt()
    assert 0.5 < error / (2 / n_samples) ** 0.5 < 2


def test_coils_that_are_white_already_stay_as_they_are():
    matrix = whitening_matrix(random((6, 100000), torch.complex128))
    assert (matrix - torch.eye(6)).abs().max() < 0.02


def test_whitening_keeps_each_coil_closest_to_the_one_it_came_from():
    noise = correlated(8, 5000, torch.complex128)
    kept = (mix_coils(whitening_matrix(noise), noise) * noise.conj()).mean(dim=1) / noise.abs().square().mean(1).sqrt()
    other = torch.linalg.inv(torch.linalg.cholesky(covariance(noise)))
    by_cholesky = ((other @ noise) * noise.conj()).mean(dim=1) / noise.abs().square().mean(1).sqrt()
    torch.testing.assert_close(kept.imag, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (kept.real > 0).all()
    assert kept.real.sum() > by_cholesky.abs().sum()


def test_whitened_kspace_is_that_of_whitened_maps():
    shape, k = (8, 7, 6), radial_3d(20, 16, (8, 7, 6))
    maps, image = simulate_maps(5, shape).to(torch.complex128), random((8, 7, 6), torch.complex128)
    matrix = whitening_matrix(correlated(5, 500, torch.complex128))
    expected = mix_coils(matrix, Encoding(k, maps)(image))
    assert relative(Encoding(k, mix_coils(matrix, maps))(image), expected) < 1e-10


def test_the_outer_samples_are_those_farthest_out_whatever_the_extent_of_an_axis():
    k = radial_3d(50, 32, (32, 8, 16))
    distance = (k / torch.tensor([16.0, 4.0, 8.0])).norm(dim=1)
    outer = outer_samples((distance + 0j)[None].to(torch.complex64), k, share=0.1)[0].real
    assert outer.min() >= distance.quantile(0.9) - 1e-3
    assert len(outer) >= 160
    assert outer_samples(k.T.to(torch.complex64), k, share=1).shape == (3, 1600)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
def test_a_scan_is_whitened_by_its_own_outer_samples(unit):
    k = radial_3d(400, 64, (32, 32, 32))
    signal = 300 * torch.exp(-k.square().sum(dim=1) / 4) * random((6, 1), seed=3)
    kspace = unit * (signal + correlated(6, len(k), seed=4))
    matrix = whitening_matrix(outer_samples(kspace, k))
    white = covariance(mix_coils(matrix, unit * correlated(6, len(k), seed=4)))
    assert (white - torch.eye(6)).abs().max() < 0.25


@every_precision
@pytest.mark.parametrize("n_kept", [1, 3, 7, 8])
def test_compression_loses_exactly_the_discarded_singular_values(n_kept, dtype):
    kspace = correlated(8, 500, torch.complex128)
    singular = torch.linalg.svdvals(kspace)
    compressed, matrix = compress_coils(kspace.to(dtype), n_kept)
    assert compressed.shape == (n_kept, 500)
    assert compressed.dtype == matrix.dtype == dtype
    rounding = 1e-6 if dtype == torch.complex64 else 1e-13
    lost = torch.linalg.vector_norm(kspace) ** 2 - torch.linalg.vector_norm(compressed.to(kspace.dtype)) ** 2
    assert abs(float(lost - (singular[n_kept:] ** 2).sum())) < rounding * float(singular[0] ** 2)
    torch.testing.assert_close(compressed.norm(dim=1).double(), singular[:n_kept], rtol=1e-4, atol=0)


def test_no_other_orthonormal_matrix_keeps_more():
    kspace = correlated(8, 500)
    kept = compress_coils(kspace, 3)[0].norm()
    for seed in range(10):
        other = torch.linalg.qr(random((8, 3), seed=seed)).Q.mH
        assert (other @ kspace).norm() < kept


def test_white_noise_stays_white_and_all_coils_kept_lose_nothing():
    kspace = correlated(8, 500, torch.complex128)
    compressed, matrix = compress_coils(kspace, 8)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(8, dtype=torch.complex128), rtol=0, atol=1e-12)
    assert relative(mix_coils(matrix.mH, compressed), kspace) < 1e-12


@pytest.mark.parametrize("unit", [1e-12, 1e12, 2j])
def test_the_matrix_does_not_depend_on_the_unit(unit):
    kspace = correlated(8, 500, torch.complex128)
    torch.testing.assert_close(compress_coils(unit * kspace, 3)[1], compress_coils(kspace, 3)[1], rtol=1e-8, atol=1e-8)
    matrix, other = whitening_matrix(kspace), whitening_matrix(unit * kspace)
    assert relative(other * abs(unit), matrix) < 1e-10


def test_six_virtual_coils_of_sixteen_explain_the_kspace_by_their_maps():
    shape, k = (12, 11, 10), radial_3d(60, 24, (12, 11, 10))
    maps, image = simulate_maps(16, shape), random((12, 11, 10))
    kspace, matrix = compress_coils(Encoding(k, maps)(image), 6)
    assert relative(Encoding(k, mix_coils(matrix, maps))(image), kspace) < 1e-3


def test_interpolated_maps_mix_as_full_ones_do():
    maps, matrix = InterpolatedMaps(simulate_maps(5, (4, 5, 6)), (9, 10, 11)), random((3, 5))
    mixed = mix_coils(matrix, maps)
    assert mixed.shape == (3, 9, 10, 11)
    assert relative(mixed.full(), mix_coils(matrix, maps.full())) < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: whitening_matrix(random((4, 3))), ValueError, "3 samples for 4 coils"),
        (lambda: whitening_matrix(random((4, 30)) * torch.tensor([1, 0, 1, 1])[:, None]), ValueError, r"coils \[1\]"),
        (lambda: whitening_matrix(random((1, 30)).expand(3, 30)), ValueError, "only 1 are independent"),
        (lambda: whitening_matrix(random((4, 30)).real), TypeError, "noise has dtype torch.float32"),
        (lambda: whitening_matrix(random((4, 5, 6))), ValueError, r"Write noise.flatten\(1\)"),
        (lambda: whitening_matrix(random((4, 30)) * np.nan), ValueError, "noise has 120 values that are NaN"),
        (lambda: prewhiten(random(9), random((4, 30))), ValueError, r"pass kspace\[None\]"),
        (lambda: prewhiten(random((3, 9)), random((4, 30))), ValueError, r"matrix has shape \(4, 4\)"),
        (lambda: outer_samples(random((2, 9)), torch.ones(8, 3)), ValueError, r"expected \(sample, 3\) = \(9, 3\)"),
        (lambda: outer_samples(random((2, 9)), torch.ones(9, 3), share=0), ValueError, "share is 0"),
        (lambda: outer_samples(random((2, 9)), torch.ones(9, 3).int()), TypeError, "trajectory has dtype torch.int32"),
        (lambda: compress_coils(random((4, 9)), 5), ValueError, "at most the 4 coils"),
        (lambda: compress_coils(random((4, 9)), 0), ValueError, "n_coils is 0"),
        (lambda: compress_coils(np.ones((4, 9)), 2), TypeError, "kspace is a ndarray"),
        (lambda: mix_coils(random(4), random((4, 9))), ValueError, "virtual coil, coil"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
