import numpy as np
import pytest
import torch

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.physics.coils import simulate_maps
from blockkit.physics.linop import adjoint_error
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (20, 18, 16)


def random(shape, dtype=torch.complex64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def small_maps(n_coils=3, shape=(7, 6, 8), dtype=torch.complex64):
    return simulate_maps(n_coils, shape, seed=1).to(dtype)


def positions(n):
    return (np.arange(n) - n // 2) / n


@pytest.mark.parametrize("few", [(7, 6, 8), (3, 4, 5), (1, 9, 3), (1, 1, 1)])
@pytest.mark.parametrize("shape", [SHAPE, (1, 17, 5), (4, 3, 9)])
def test_a_polynomial_of_degree_two_comes_out_exact_up_to_the_edges(few, shape):
    def exact(sizes):
        axes = [positions(n) if f > 1 else np.zeros(n) for n, f in zip(sizes, few, strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        return torch.from_numpy((1 + z - 2 * z**2) * (1 + 1j * y + y**2) * (2 - x + 1j * x**2))

    maps = InterpolatedMaps(exact(few)[None], shape)[:][0]
    assert maps.shape == shape
    torch.testing.assert_close(maps, exact(shape), rtol=1e-12, atol=1e-12)


def test_smooth_maps_come_out_close_to_those_made_at_full_size():
    exact = simulate_maps(4, (48, 40, 44), seed=2)
    error = [
        float(torch.linalg.vector_norm(InterpolatedMaps(simulate_maps(4, few, seed=2), exact.shape[1:]).full() - exact))
        / float(torch.linalg.vector_norm(exact))
        for few in ((12, 10, 11), (24, 20, 22))
    ]
    assert error[0] < 0.03
    assert error[1] < error[0] / 4


@pytest.mark.parametrize("coils_at_once", [1, 2, 5])
@pytest.mark.parametrize("normal", ["toeplitz", "nufft"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_interpolating_when_needed_is_the_same_as_storing_in_full(coils_at_once, normal, dtype):
    maps = InterpolatedMaps(small_maps(), SHAPE)
    options = {"coils_at_once": coils_at_once, "normal": normal}
    lazy = Encoding(radial_3d(40, 40, SHAPE), maps, **options)
    stored = Encoding(radial_3d(40, 40, SHAPE), maps.full(), **options)
    x, y = random(SHAPE, dtype), random(lazy.out_shape, dtype, seed=1)
    assert torch.equal(lazy(x), stored(x))
    assert torch.equal(lazy.adjoint(y), stored.adjoint(y))
    assert torch.equal(lazy.normal(x), stored.normal(x))
    assert adjoint_error(lazy, dtype=dtype) < (1e-6 if dtype == torch.complex64 else 1e-13)
    assert repr(lazy) == repr(stored)


def test_memory_does_not_grow_with_the_number_of_coils():
    def peak(n_coils):
        A = Encoding(radial_3d(40, 40, SHAPE), InterpolatedMaps(small_maps(n_coils), SHAPE), normal="toeplitz")
        x = random(SHAPE)
        A.normal(x)
        with measure_peak() as peak:
            A.normal(x)
        assert predict_peak(A.normal, x) == peak.bytes
        return peak.bytes

    assert peak(12) == peak(2)


def test_the_small_array_is_what_is_kept():
    maps = InterpolatedMaps(small_maps(), SHAPE)
    assert maps.nbytes == 3 * 7 * 6 * 8 * 8
    assert maps.shape == (3, *SHAPE)
    assert len(maps) == 3
    assert maps.to("cpu") is maps


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.ones((1, 3, 3, 3)), TypeError, "values is a ndarray, expected a torch.Tensor"),
        (torch.ones(1, 3, 3, 3), TypeError, "values has dtype torch.float32, expected torch.complex64"),
        (random((3, 3, 3)), ValueError, r"expected \(coil, z, y, x\)"),
        (random((1, 2, 3, 3)), ValueError, "1 or at least 3"),
        (random((0, 3, 3, 3)), ValueError, r"values has shape \(0, 3, 3, 3\)"),
        (random((1, 3, 3, 3)) * np.nan, ValueError, "27 values that are NaN"),
    ],
)
def test_a_wrong_argument_is_named(values, error, message):
    with pytest.raises(error, match=message):
        InterpolatedMaps(values, SHAPE)
