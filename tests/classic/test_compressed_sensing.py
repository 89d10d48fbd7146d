import math
import warnings

import pytest
import torch

from blockkit.classic.compressed_sensing import compressed_sensing, tune_reg_weight
from blockkit.classic.sparsity import Wavelet, pad
from blockkit.metrics import nrmse, psnr
from blockkit.physics.linop import LinearOperator

SHAPES = [(4, 6, 8), (1, 9, 16), (5, 1, 3), (3, 3, 3)]


class Dense(LinearOperator):
    """A matrix on images, well conditioned unless it has fewer rows than columns."""

    def __init__(self, image_shape, n_rows, seed=0):
        generator = torch.Generator().manual_seed(seed)
        n = math.prod(image_shape)
        self.in_shape, self.out_shape = tuple(image_shape), (n_rows,)
        self.matrix = torch.randn(n_rows, n, dtype=torch.complex128, generator=generator) / n_rows**0.5

    def forward(self, x):
        return self.matrix.to(x.dtype) @ x.reshape(-1)

    def adjoint(self, y):
        return (self.matrix.mH.to(y.dtype) @ y).reshape(self.in_shape)


class Coils(LinearOperator):
    """Coil maps, then the exact Fourier sum as a matrix."""

    def __init__(self, trajectory, maps):
        self.maps, self.in_shape = maps, tuple(maps.shape[1:])
        self.out_shape = (len(maps), len(trajectory))
        grid = torch.meshgrid(*((torch.arange(n) - n // 2) / n for n in self.in_shape), indexing="ij")
        positions = torch.stack([axis.flatten() for axis in grid])
        self.fourier = torch.exp(-2j * math.pi * (trajectory @ positions)) / math.prod(self.in_shape) ** 0.5

    def forward(self, x):
        return (self.maps * x).flatten(1) @ self.fourier.T

    def adjoint(self, y):
        return (self.maps.conj() * (y @ self.fourier.conj()).reshape(self.maps.shape)).sum(dim=0)


def problem(shape, n_rows=None, noise=0.02, dtype=torch.complex128):
    """An operator, the data of a blocky image, and the image."""
    A = Dense(shape, n_rows or 2 * math.prod(shape))
    x = torch.zeros(shape, dtype=torch.complex128)
    z, y, w = (n // 2 + 1 for n in shape)
    x[:z, :y, :w] = 1 + 0.5j
    kspace = A.forward(x)
    kspace += noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(5))
    return A, kspace.to(dtype), x.to(dtype)


def objective(A, kspace, x, W, weight):
    data = torch.linalg.vector_norm(A.forward(x) - kspace) ** 2 / 2
    return float(data + weight * W.forward(x).abs().sum())


@pytest.mark.parametrize("shape", [(4, 2, 8), (1, 8, 16), (2, 1, 4), (3, 5, 4)])
def test_the_image_without_shifts_meets_the_optimality_conditions(shape):
    A, kspace, _ = problem(shape)
    W = Wavelet(Wavelet(shape, name="haar").padded_shape, name="haar")
    x = compressed_sensing(
        A, kspace, reg_weight=0.05, wavelet="haar", random_shifts=False, tolerance=0, n_iterations=300
    )
    weight = 0.05 * W.largest_coefficient(pad(A.adjoint(kspace), W.in_shape))
    slope = W.forward(pad(A.adjoint(kspace) - A.normal(x), W.in_shape))
    assert float(slope.abs().max()) <= weight * (1 + 1e-4)
    if W.in_shape == shape:
        coefficients = W.forward(x)
        active = coefficients.abs() > 1e-6
        assert 0 < int(active.sum()) < active.numel()
        expected = weight * coefficients[active] / coefficients[active].abs()
        torch.testing.assert_close(slope[active], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("random_shifts", [True, False])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [*SHAPES, (15, 16, 2)])
def test_a_reg_weight_of_one_gives_exactly_zero_and_a_little_less_does_not(shape, dtype, random_shifts):
    A, kspace, _ = problem(shape, dtype=dtype)
    zero = compressed_sensing(A, kspace, reg_weight=1.0, random_shifts=random_shifts, n_iterations=50)
    assert torch.equal(zero, torch.zeros(shape, dtype=dtype))
    if math.prod(Wavelet(shape).padded_shape) == math.prod(shape) and max(Wavelet(shape).n_levels) == 0:
        assert bool(compressed_sensing(A, kspace, reg_weight=0.99, n_iterations=50).any())


@pytest.mark.parametrize("shape", SHAPES)
def test_no_penalty_gives_least_squares(shape):
    A, kspace, _ = problem(shape)
    x = compressed_sensing(A, kspace, reg_weight=0.0, tolerance=0, n_iterations=1000)
    expected = torch.linalg.lstsq(A.matrix, kspace[:, None]).solution.reshape(shape)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e9, 2j])
def test_the_unit_of_the_kspace_only_scales_the_image(scale):
    A, kspace, _ = problem((4, 6, 16), n_rows=200, dtype=torch.complex64)
    x = compressed_sensing(A, kspace, reg_weight=0.02, n_iterations=60)
    scaled = compressed_sensing(A, kspace * scale, reg_weight=0.02, n_iterations=60)
    assert torch.linalg.vector_norm(scaled / scale - x) < 1e-4 * torch.linalg.vector_norm(x)


def test_no_graph_is_built_when_the_kspace_needs_gradients():
    A, kspace, _ = problem((4, 6, 8))
    assert not compressed_sensing(A, kspace.requires_grad_(), n_iterations=3).requires_grad


def test_zero_kspace_gives_zero():
    A, kspace, _ = problem((4, 6, 8))
    assert torch.equal(compressed_sensing(A, 0 * kspace), torch.zeros(4, 6, 8, dtype=torch.complex128))


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    A, kspace, _ = problem((4, 6, 16), n_rows=200)
    first, same, other = (compressed_sensing(A, kspace, reg_weight=0.02, n_iterations=30, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_it_applies_the_adjoint_once_and_then_only_the_normal():
    A, kspace, _ = problem((4, 6, 8))
    calls = []

    class Counted(Dense):
        def forward(self, x):
            calls.append("forward")
            return super().forward(x)

        def adjoint(self, y):
            calls.append("adjoint")
            return super().adjoint(y)

        def normal(self, x):
            calls.append("normal")
            return (A.matrix.mH @ (A.matrix @ x.reshape(-1))).reshape(A.in_shape)

    compressed_sensing(Counted(A.in_shape, len(kspace)), kspace, n_iterations=7, tolerance=0)
    assert calls == ["adjoint"] + ["normal"] * 17


@pytest.mark.parametrize("random_shifts", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.01])
def test_a_step_size_that_diverges_is_halved_until_it_does_not(monkeypatch, share, random_shifts):
    A, kspace, _ = problem((4, 6, 8))
    options = {"reg_weight": 0.05, "random_shifts": random_shifts, "tolerance": 0, "n_iterations": 200}
    expected = compressed_sensing(A, kspace, **options)
    bound = float(torch.linalg.matrix_norm(A.matrix, ord=2)) ** 2
    monkeypatch.setattr("blockkit.classic.compressed_sensing.eigenvalue_bound", lambda *_, **__: share * bound)
    assert nrmse(compressed_sensing(A, kspace, **options), expected) < (1e-2 if random_shifts else 1e-6)


def test_one_voxel_seen_far_better_than_the_others_does_not_make_it_diverge():
    class Hot(LinearOperator):
        in_shape = out_shape = (24, 24, 24)

        def forward(self, x):
            gain = torch.ones_like(x)
            gain[3, 4, 5] = 1.25
            return gain * x

        adjoint = forward

    x = torch.randn(24, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    image = compressed_sensing(Hot(), Hot()(x), reg_weight=1e-6, tolerance=0, n_iterations=100)
    assert nrmse(image, x) < 1e-4


def test_it_stops_when_the_objective_no_longer_falls(capsys):
    A, kspace, _ = problem((4, 6, 16), n_rows=200)
    n_calls = [0]

    class Counted(Dense):
        def normal(self, x):
            n_calls[0] += 1
            return super().normal(x)

    for random_shifts in (True, False):
        n_calls[0] = 0
        compressed_sensing(Counted(A.in_shape, 200), kspace, reg_weight=0.02, n_iterations=5000,
                           random_shifts=random_shifts)  # fmt: skip
        assert 50 <= n_calls[0] < 1000
    assert capsys.readouterr().err == ""
    compressed_sensing(A, kspace, n_iterations=3, progress=True)
    assert "compressed sensing" in capsys.readouterr().err


def test_the_penalty_beats_least_squares_where_data_are_few():
    A, kspace, truth = problem((1, 16, 16), n_rows=160, noise=0.05)
    scores = [psnr(compressed_sensing(A, kspace, reg_weight=w, wavelet="haar"), truth) for w in (0.0, 0.02)]
    assert scores[1] > scores[0] + 3


def test_random_shifts_beat_a_fixed_grid():
    A, kspace, _ = problem((1, 16, 16), n_rows=160, noise=0.05)
    truth = torch.zeros(A.in_shape, dtype=kspace.dtype)
    truth[:, 3:10, 5:12] = 1
    kspace = A.forward(truth) + kspace - A.forward(problem((1, 16, 16))[2])
    fixed, shifted = (
        psnr(compressed_sensing(A, kspace, reg_weight=0.02, wavelet="haar", random_shifts=r), truth)
        for r in (False, True)
    )
    assert shifted > fixed + 1


@pytest.mark.slow
def test_the_objective_is_as_low_as_the_one_sigpy_reaches():
    wavelet = "haar"  # there sigpy's zero edges and our periodic ones give the same transform, so the same problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sigpy, when it is imported
        mri = pytest.importorskip("sigpy.mri.app")
        import sigpy
    shape, n_samples = (8, 8, 8), 200
    generator = torch.Generator().manual_seed(1)
    trajectory = (torch.rand(n_samples, 3, generator=generator) - 0.5) * torch.tensor(shape)
    maps = torch.randn(2, 1, 1, 1, dtype=torch.complex64, generator=generator) * torch.ones(2, *shape)
    maps[0] *= torch.linspace(0.2, 1, 8)
    A = Coils(trajectory, maps)
    truth = torch.zeros(shape, dtype=torch.complex64)
    truth[2:6, 3:8, 1:6] = 1
    kspace = A.forward(truth)
    kspace += 0.05 * kspace.abs().mean() * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)

    W, reg_weight = Wavelet(shape, name=wavelet), 0.01
    weight = reg_weight * W.largest_coefficient(A.adjoint(kspace))
    ours = compressed_sensing(A, kspace, reg_weight=reg_weight, wavelet=wavelet, random_shifts=False, tolerance=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sigpy, as it runs
        sigpy.config.mpi4py_enabled = False
        theirs = mri.L1WaveletRecon(
            kspace.numpy(), maps.numpy(), weight, coord=trajectory.numpy(), wave_name=wavelet, max_iter=300,
            show_pbar=False,
        ).run()  # fmt: skip
    theirs = torch.from_numpy(theirs)
    assert psnr(theirs, truth) > 12
    assert objective(A, kspace, ours, W, weight) <= 1.001 * objective(A, kspace, theirs, W, weight)
    assert nrmse(ours, theirs) < 0.02


def test_tuning_finds_the_best_weight_and_extends_the_grid_towards_it():
    A, kspace, truth = problem((1, 16, 16), n_rows=160, noise=0.05)
    tuning = tune_reg_weight(A, kspace, truth, reg_weights=(1e-4, 1e-3), n_iterations=60)
    assert tuning.scores[tuning.reg_weight] == max(tuning.scores.values())
    assert list(tuning.scores) == sorted(tuning.scores)
    assert min(tuning.scores) < tuning.reg_weight < max(tuning.scores)
    assert len(tuning.scores) > 2
    by_error = tune_reg_weight(A, kspace, truth, reg_weights=(0.3, 0.1), n_iterations=60, metric=nrmse)
    assert by_error.scores[by_error.reg_weight] == min(by_error.scores.values())


def test_tuning_warns_when_the_best_weight_stays_at_the_end():
    A, kspace, truth = problem((4, 6, 8), noise=0)
    with pytest.warns(UserWarning, match="lies at the end of the weights tried"):
        tuning = tune_reg_weight(A, kspace, truth, reg_weights=(1e-3, 2e-3), n_iterations=300)
    assert tuning.reg_weight == min(tuning.scores)


def test_wrong_input_is_refused():
    A, kspace, truth = problem((4, 6, 8))
    with pytest.raises(TypeError, match="kspace is a ndarray"):
        compressed_sensing(A, kspace.numpy())
    with pytest.raises(ValueError, match=r"kspace has shape \(1, 384\)"):
        compressed_sensing(A, kspace[None])
    with pytest.raises(TypeError, match="complex"):
        compressed_sensing(A, kspace.real)
    with pytest.raises(ValueError, match="NaN"):
        compressed_sensing(A, kspace * math.nan)
    for reg_weight in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="reg_weight is"):
            compressed_sensing(A, kspace, reg_weight=reg_weight)
    with pytest.raises(TypeError, match="reg_weight is 'a', expected a number"):
        compressed_sensing(A, kspace, reg_weight="a")
    with pytest.raises(TypeError, match="reg_weight is 'a', expected a number"):
        tune_reg_weight(A, kspace, truth, reg_weights=["a", 0.2])
    with pytest.raises(ValueError, match="n_iterations is 0"):
        compressed_sensing(A, kspace, n_iterations=0)
    with pytest.raises(ValueError, match="orthogonal wavelet"):
        compressed_sensing(A, kspace, wavelet="dmey")
    with pytest.raises(ValueError, match="at least two different"):
        tune_reg_weight(A, kspace, truth, reg_weights=[1e-3, 1e-3])
    with pytest.raises(ValueError, match="reference has shape"):
        tune_reg_weight(A, kspace, truth[0])
