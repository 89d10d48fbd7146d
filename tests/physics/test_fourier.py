"""The exact sum, the NUFFT on each engine, and Toeplitz, against each other and against arithmetic by hand."""

import gc
import math
import subprocess
import sys
import weakref

import pytest
import torch
from operators import scattered
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from blockkit import ledger
from blockkit.blockwise.memory import measure_peak
from blockkit.physics import engines, fourier, toeplitz
from blockkit.physics.fourier import NUFFT, DirectFourier, toeplitz_pays
from blockkit.physics.linop import adjoint_error
from blockkit.physics.toeplitz import Toeplitz, padded_shape, toeplitz_kernel
from blockkit.physics.trajectory import radial_3d

SHAPES = [(11, 8, 9), (1, 16, 13), (12, 1, 7), (1, 1, 15), (2, 3, 2), (1, 1, 1), (5, 24, 6)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
finest_table = pytest.param(2e-5, marks=pytest.mark.slow)  # torchkbnufft makes its tables for seconds


def random(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 5) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def by_hand(trajectory: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the whole matrix (sample, voxel) of the definition."""
    r = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)).view(-1, 3)
    turns = (trajectory.double()[:, None] * r / torch.tensor(shape)).sum(dim=-1)
    return torch.exp(-2j * torch.pi * turns) / r.shape[0] ** 0.5


@every_shape
def test_the_exact_sum_is_the_definition(shape):
    trajectory = scattered(shape, 31)
    F, matrix, x, y = DirectFourier(trajectory, shape), by_hand(trajectory, shape), random(*shape), random(31)
    assert relative(F(x), matrix @ x.flatten()) < 1e-13
    assert relative(F.adjoint(y).flatten(), matrix.mH @ y) < 1e-13


def test_the_exact_sum_does_not_depend_on_its_chunks(monkeypatch):
    F, x, y = DirectFourier(scattered((5, 4, 7), 101), (5, 4, 7)), random(3, 5, 4, 7), random(3, 101)
    whole, whole_adjoint = F(x), F.adjoint(y)
    monkeypatch.setattr(fourier, "_CHUNK", 5 * 4 * 7)
    assert relative(F(x), whole) < 1e-14
    assert relative(F.adjoint(y), whole_adjoint) < 1e-14


def test_a_point_at_the_center_gives_ones_of_orthonormal_scale():
    shape = (6, 5, 8)
    x = torch.zeros(shape, dtype=torch.complex128)
    x[3, 2, 4] = 1
    for F in (DirectFourier(scattered(shape, 20), shape), NUFFT(scattered(shape, 20), shape, tolerance=1e-9)):
        assert relative(F(x), torch.full((20,), 240**-0.5, dtype=torch.complex128)) < 1e-8


def test_on_the_full_grid_it_is_the_centered_fft():
    shape = (4, 7, 6)
    grid = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in shape)).double()
    x = random(*shape)
    expected = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x), norm="ortho")).flatten()
    assert relative(DirectFourier(grid, shape)(x), expected) < 1e-13
    assert relative(NUFFT(grid, shape, tolerance=1e-10)(x), expected) < 1e-10


@every_shape
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-4, 1e-5, 1e-8, 1e-12])
def test_finufft_keeps_its_tolerance(shape, tolerance):
    check_tolerance(scattered(shape, 67), shape, "finufft", tolerance)


@every_shape
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-4, finest_table])
def test_torchkbnufft_keeps_its_tolerance(shape, tolerance):
    check_tolerance(scattered(shape, 67), shape, "torchkbnufft", tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["finufft", "torchkbnufft"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 2e-5])
def test_tolerance_is_kept_at_a_larger_odd_size(engine, tolerance):
    check_tolerance(radial_3d(100, 61, (27, 45, 32)).double(), (27, 45, 32), engine, tolerance)


def check_tolerance(trajectory, shape, engine, tolerance):
    F, exact = NUFFT(trajectory, shape, engine=engine, tolerance=tolerance), DirectFourier(trajectory, shape)
    x, y = random(*shape), random(len(trajectory))
    assert relative(F(x), exact(x)) < tolerance
    assert relative(F.adjoint(y), exact.adjoint(y)) < tolerance


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [
        *(("finufft", tolerance) for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)),
        *(("torchkbnufft", tolerance) for tolerance in (1e-1, 1e-2, 1e-3, 1e-4)),
        pytest.param("torchkbnufft", 2e-5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("shape", [(1, 64, 63), (15, 13, 11)], ids=str)
def test_a_bright_corner_voxel_and_samples_in_the_corners_keep_the_tolerance(shape, engine, tolerance):
    inside = scattered(shape, 120)
    corners = inside.sign() * torch.tensor(shape) / 2 * (1 + torch.linspace(0, 9e-4, 120)[:, None])
    trajectory = torch.cat([inside, corners]) * (torch.tensor(shape) > 1)
    F, exact = NUFFT(trajectory, shape, engine=engine, tolerance=tolerance), DirectFourier(trajectory, shape)
    corner = torch.zeros(shape, dtype=torch.complex128)
    corner[0, 0, 0] = 1
    for x in (corner, random(*shape)):
        assert relative(F(x), exact(x)) < tolerance
    assert relative(F.adjoint(random(240)), exact.adjoint(random(240))) < tolerance


@pytest.mark.parametrize("engine", ["finufft", "torchkbnufft"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_single_precision_keeps_the_tolerance_too(engine, tolerance):
    shape = (9, 14, 11)
    F, exact = NUFFT(scattered(shape, 67), shape, engine=engine, tolerance=tolerance), scattered(shape, 67)
    x, y = random(*shape), random(67)
    exact = DirectFourier(exact, shape)
    assert relative(F(x.to(torch.complex64)), exact(x)) < tolerance
    assert relative(F.adjoint(y.to(torch.complex64)), exact.adjoint(y)) < tolerance


def test_a_tolerance_finer_than_single_precision_prints_and_warns_nothing(capfd):
    F = NUFFT(scattered((9, 8, 7), 30), (9, 8, 7), tolerance=1e-9)
    x = random(9, 8, 7)
    assert relative(F(x.to(torch.complex64)), F(x)) < 1e-5
    for tolerance in (1e-1, 1e-4, 3e-5, 1e-5, 1e-6, 1e-8, 1e-12):
        for dtype in (torch.complex64, torch.complex128):
            NUFFT(scattered((9, 8, 7), 30), (9, 8, 7), tolerance=tolerance)(x.to(dtype))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", [DirectFourier, NUFFT, lambda k, n: NUFFT(k, n, engine="torchkbnufft", tolerance=0.1)])
def test_coils_are_each_done_as_if_alone(make):
    shape = (4, 7, 6)
    F, x, y = make(scattered(shape, 23), shape), random(3, *shape), random(3, 23)
    assert relative(F(x), torch.stack([F(one) for one in x])) < 1e-14
    assert relative(F.adjoint(y), torch.stack([F.adjoint(one) for one in y])) < 1e-14
    assert F(x[:0]).shape == (0, 23)


@pytest.mark.parametrize("make", [DirectFourier, NUFFT])
def test_more_axes_than_coil_and_image_are_refused(make):
    F = make(scattered((4, 5, 6), 20), (4, 5, 6))
    with pytest.raises(ValueError, match=r"image has shape \(2, 3, 4, 5, 6\), expected .*one coil axis in front"):
        F(random(2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match=r"kspace has shape \(1, 2, 20\), expected \(sample\) = \(20\)"):
        F.adjoint(random(1, 2, 20))
    for wrong in ((6, 5, 4), (5, 6), (4, 5, 7), (20,)):
        with pytest.raises(ValueError, match=r"expected \(z, y, x\) = \(4, 5, 6\)"):
            F(random(*wrong))
    with pytest.raises(TypeError, match=r"image has dtype torch\.float32"):
        F(torch.zeros(4, 5, 6))
    with pytest.raises(TypeError, match="image is a ndarray"):
        F(random(4, 5, 6).numpy())


@pytest.mark.parametrize("make", [DirectFourier, NUFFT])
def test_a_bad_trajectory_is_refused_by_name(make):
    good = scattered((8, 16, 16), 40)
    with pytest.raises(ValueError, match=r"trajectory has shape \(3, 40\), .*trajectory.T"):
        make(good.T, (8, 16, 16))
    with pytest.raises(ValueError, match=r"reshape\(-1, 3\)"):
        make(good.view(4, 10, 3), (8, 16, 16))
    with pytest.raises(ValueError, match="at least one row"):
        make(good[:0], (8, 16, 16))
    with pytest.raises(TypeError, match=r"dtype torch\.int64"):
        make(good.long(), (8, 16, 16))
    with pytest.raises(TypeError, match=r"dtype torch\.complex128"):
        make(good + 0j, (8, 16, 16))
    with pytest.raises(ValueError, match=r"1 values that are NaN or infinite, the first at index \(7, 1\)"):
        make(good.index_put((torch.tensor(7), torch.tensor(1)), torch.tensor(torch.nan).double()), (8, 16, 16))
    with pytest.raises(ValueError, match=r"\|kz\| = .* expected at most n/2 = 4 .*kz ky kx"):
        make(good.flip(1), (8, 16, 16))


def test_a_trajectory_in_another_unit_is_named():
    cycles_per_voxel = scattered((32, 24, 1), 200) / torch.tensor([32, 24, 1])
    with pytest.raises(ValueError, match=r"cycles per voxel.*trajectory \* torch.tensor\(\[32, 24, 1\]\)"):
        NUFFT(cycles_per_voxel, (32, 24, 1))
    radians = radial_3d(500, 64, (32, 24, 32)) * 2 * torch.pi / torch.tensor([32, 24, 32])
    with pytest.warns(UserWarning, match="radians per voxel"):
        NUFFT(radians, (32, 24, 32))


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.6, 2.0, 3.0, 4.0])
def test_samples_near_the_center_alone_are_welcome(radius):
    F = NUFFT(scattered((32, 32, 32), 200) * (2 * radius / 32), (32, 32, 32))
    assert F.out_shape == (200,)
    assert NUFFT(torch.tensor([[0.5, 0.0, 0.0]]), (32, 32, 32)).out_shape == (1,)


def test_engines_that_are_unknown_unfit_or_missing_say_what_to_do(monkeypatch):
    k = scattered((4, 5, 6), 20)
    with pytest.raises(ValueError, match="engine is 'fft', expected 'auto' or one of"):
        NUFFT(k, (4, 5, 6), engine="fft")
    with pytest.raises(ValueError, match="'cufinufft' needs a CUDA device"):
        NUFFT(k, (4, 5, 6), engine="cufinufft")
    with pytest.raises(ValueError, match="torchkbnufft reaches 2e-05"):
        NUFFT(k, (4, 5, 6), engine="torchkbnufft", tolerance=1e-6)
    for tolerance in (0.0, -1e-4, 1e-14, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"expected a relative error from 1e-12 to 0\.1"):
            NUFFT(k, (4, 5, 6), tolerance=tolerance)
    with pytest.raises(TypeError, match="tolerance is '1e-4', expected a number"):
        NUFFT(k, (4, 5, 6), tolerance="1e-4")
    monkeypatch.setitem(sys.modules, "torchkbnufft", None)
    with pytest.raises(ImportError, match="pip install torchkbnufft"):
        NUFFT(k, (4, 5, 6), engine="torchkbnufft")


def test_only_operators_can_be_composed():
    F = NUFFT(scattered((4, 5, 6), 20), (4, 5, 6))
    for other in (3, random(4, 5, 6)):
        with pytest.raises(TypeError, match=rf"right side of @ is a {type(other).__name__}, expected an operator"):
            F @ other


def test_repr_says_which_engine_works():
    assert repr(NUFFT(scattered((4, 5, 6), 20), (4, 5, 6))) == (
        "NUFFT((4, 5, 6) -> (20,), engine='finufft', tolerance=0.0001)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["finufft", "torchkbnufft"])
def test_an_engine_imports_no_other_and_warns_of_nothing(engine):
    script = (
        "import os, sys, torch; from blockkit.physics.fourier import NUFFT;"
        "assert not {'finufft', 'torchkbnufft', 'cufinufft'} & set(sys.modules);"
        f"F = NUFFT(torch.zeros(1, 3), (4, 4, 4), engine={engine!r}); F(torch.ones(4, 4, 4) + 0j);"
        f"assert {{'finufft', 'torchkbnufft', 'cufinufft'}} & set(sys.modules) == {{{engine!r}}};"
        "os._exit(0)"  # on a busy machine TorchScript, which torchkbnufft compiles with, may abort an orderly exit
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("engine", ["finufft", "torchkbnufft"])
def test_fake_tensors_give_the_shape_and_declare_the_bytes(engine, dtype):
    shape = (13, 18, 16)
    F = NUFFT(scattered(shape, 40), shape, engine=engine)
    fine_grid = 13 * 18 * 16 * 1.25**3 * dtype.itemsize

    def declared(run):
        told = []
        with ledger.listen(lambda n_bytes, _: told.append(n_bytes)):
            run()
        assert sum(told) == 0
        return told[0]

    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = torch.empty(2, *shape, dtype=dtype), torch.empty(2, 40, dtype=dtype)
        kspace, image = F(x), F.adjoint(y)
        assert (kspace.shape, kspace.dtype, image.shape, image.dtype) == ((2, 40), dtype, (2, *shape), dtype)
        predicted = declared(lambda: F(x)), declared(lambda: F.adjoint(y))
    assert min(predicted) > fine_grid
    assert F._engine is None
    if engine == "finufft":
        x, y = random(2, *shape, dtype=dtype), random(2, 40, dtype=dtype)
        assert (declared(lambda: F(x)), declared(lambda: F.adjoint(y))) == predicted


def test_fine_grids_are_even_smooth_and_large_enough():
    for n in range(2, 300):
        m = engines._next_smooth(n)
        assert m >= n
        assert m % 2 == 0
        for factor in (2, 3, 5):
            while m % factor == 0:
                m //= factor
        assert m == 1


def test_repeated_calls_use_one_plan_for_each_precision():
    F = NUFFT(scattered((6, 5, 7), 30), (6, 5, 7))
    x = random(4, 6, 5, 7)
    F.adjoint(F(x))
    plans = dict(F._engine._plans)
    for _ in range(3):
        F.adjoint(F(x))
        F(x[0])
    assert F._engine._plans == plans
    assert len(plans) == 1
    F(x.to(torch.complex64))
    assert len(F._engine._plans) == 2


def test_plans_follow_the_number_of_threads_and_old_ones_go():
    F, x = NUFFT(scattered((6, 5, 7), 30), (6, 5, 7)), random(6, 5, 7)
    n_threads = torch.get_num_threads()
    first = F(x)
    plan = weakref.ref(next(iter(F._engine._plans.values())))
    try:
        torch.set_num_threads(n_threads + 1)
        assert relative(F(x), first) < 1e-14
    finally:
        torch.set_num_threads(n_threads)
    gc.collect()
    assert len(F._engine._plans) == 1
    assert plan() is None


def test_an_operator_takes_its_plans_with_it():
    F = NUFFT(scattered((6, 5, 7), 30), (6, 5, 7))
    F(random(6, 5, 7))
    plan = weakref.ref(next(iter(F._engine._plans.values())))
    assert F.to("cpu")._engine is None
    del F
    gc.collect()
    assert plan() is None


def test_changing_the_callers_trajectory_changes_nothing():
    trajectory, x = scattered((6, 5, 7), 30), random(6, 5, 7)
    F, exact = NUFFT(trajectory, (6, 5, 7), tolerance=1e-8), DirectFourier(trajectory, (6, 5, 7))
    before = exact(x)
    trajectory.zero_()
    assert relative(F(x), before) < 1e-8
    assert relative(exact(x), before) < 1e-14


@every_shape
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-7])
def test_toeplitz_is_the_weighted_normal_to_the_tolerance(shape, tolerance):
    trajectory = scattered(shape, 67)
    weights = torch.rand(67, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    F, exact = NUFFT(trajectory, shape, tolerance=tolerance), DirectFourier(trajectory, shape)
    T, matrix = F.toeplitz(weights), by_hand(trajectory, shape)
    largest = torch.linalg.matrix_norm((matrix.mH * weights) @ matrix, ord=2)
    x = random(2, *shape)
    error = torch.linalg.vector_norm(T(x) - exact.adjoint(weights * exact(x)), dim=(1, 2, 3))
    assert (error < tolerance * largest * torch.linalg.vector_norm(x, dim=(1, 2, 3))).all()
    assert T.spectral_bound > largest * (1 - tolerance)


def test_toeplitz_from_torchkbnufft_is_the_normal_too():
    shape = (5, 6, 4)
    trajectory, x = scattered(shape, 67), random(*shape)
    T = NUFFT(trajectory, shape, engine="torchkbnufft", tolerance=1e-2).toeplitz()
    assert relative(T(x), DirectFourier(trajectory, shape).normal(x)) < 1e-2


def test_the_kernel_from_the_exact_sum_is_exact():
    shape = (5, 6, 3)
    trajectory, x = scattered(shape, 40), random(*shape)
    F = DirectFourier(trajectory, shape)
    T = Toeplitz(toeplitz_kernel(F, trajectory, shape, dtype=torch.float64), shape)
    assert relative(T(x), F.normal(x)) < 1e-13


def test_the_fully_sampled_normal_is_the_identity():
    shape = (6, 5, 8)
    grid = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in shape)).double()
    T, x = NUFFT(grid, shape, tolerance=1e-8).toeplitz(), random(*shape)
    assert relative(T(x), x) < 1e-8


def test_toeplitz_does_not_depend_on_its_slabs(monkeypatch):
    T, x = NUFFT(scattered((9, 8, 7), 30), (9, 8, 7)).toeplitz(), random(2, 9, 8, 7)
    whole = T(x)
    monkeypatch.setitem(toeplitz._SLAB, "cpu", 1)
    assert relative(T(x), whole) < 1e-14


def test_toeplitz_never_holds_the_padded_grid(monkeypatch):
    monkeypatch.setitem(toeplitz._SLAB, "cpu", 2**13)
    shape = (40, 64, 48)
    T, x = Toeplitz(torch.ones(padded_shape(shape)), shape), random(*shape, dtype=torch.complex64)
    with measure_peak() as peak:
        T(x)
    padded = T.kernel.numel() * x.itemsize
    assert peak.bytes < 0.75 * padded


def test_toeplitz_refuses_kernels_and_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"kernel has shape \(8, 9, 12\), expected .* at least \(9, 9, 11\)"):
        Toeplitz(torch.ones(8, 9, 12), (5, 5, 6))
    with pytest.raises(TypeError, match="expected a real spectrum"):
        Toeplitz(random(9, 9, 11), (5, 5, 6))
    with pytest.raises(ValueError, match="image has shape"):
        Toeplitz(torch.ones(9, 9, 11), (5, 5, 6))(random(2, 2, 5, 5, 6))
    F = NUFFT(scattered((5, 5, 6), 20), (5, 5, 6))
    with pytest.raises(ValueError, match=r"weights has shape \(19,\), expected \(sample,\) = \(20,\)"):
        F.toeplitz(torch.ones(19))
    with pytest.raises(ValueError, match="weights has a negative value, -1"):
        F.toeplitz(-torch.ones(20))
    with pytest.raises(TypeError, match=r"weights has dtype torch\.complex64"):
        F.toeplitz(torch.ones(20, dtype=torch.complex64))


def test_padding_is_fast_enough_long_and_absent_for_one_voxel():
    assert padded_shape((1, 1, 1)) == (1, 1, 1)
    for n in range(2, 130):
        (p, _, _) = padded_shape((n, 1, 1))
        assert 2 * n - 1 <= p <= 2.2 * n + 2


@pytest.mark.parametrize("most", [1, 30, 100])
def test_the_kernel_does_not_depend_on_its_pieces(most, monkeypatch):
    shape = (5, 8, 7)
    F = NUFFT(scattered(shape, 40), shape, tolerance=1e-10)
    whole = F.toeplitz().kernel
    monkeypatch.setattr(toeplitz, "_MOST_IN_PIECE", most)
    assert math.prod(toeplitz.kernel_piece(shape)) <= most
    assert relative(F.toeplitz().kernel, whole) < 1e-10


def test_toeplitz_pays_unless_the_fine_grid_is_small_and_the_samples_few():
    assert toeplitz_pays((96, 96, 96), 20, tolerance=9e-4)
    assert toeplitz_pays((64, 64, 64), 1000 * 128, tolerance=1e-3)
    assert toeplitz_pays((128, 128, 128), 20, tolerance=1e-3)
    assert not toeplitz_pays((96, 96, 96), 200 * 192, tolerance=1e-3)


def test_adjointness_does_not_depend_on_the_number_of_threads():
    F = NUFFT(radial_3d(60, 40, (20, 18, 16)), (20, 18, 16))
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            assert adjoint_error(F) < 1e-13
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("tolerance", [1e-4, 2e-6, 1e-6, 3e-7, 1e-7, 1e-8])
def test_adjointness_does_not_depend_on_the_tolerance(tolerance):
    assert adjoint_error(NUFFT(radial_3d(40, 64, (32, 31, 30)), (32, 31, 30), tolerance=tolerance)) < 1e-13


def test_elsewhere_than_on_cpu_or_cuda_the_work_is_done_at_home(monkeypatch):
    shape = (5, 6, 4)
    trajectory, x, y = scattered(shape, 40), random(2, *shape), random(40)

    def everything():
        F = NUFFT(trajectory, shape)
        return F(x), F.adjoint(y), F.toeplitz()(x), F.resized((7, 6, 9)).adjoint(y), DirectFourier(trajectory, shape)(x)

    expected = everything()
    monkeypatch.setattr(fourier, "_home", lambda device: torch.device("cpu", 0))
    with pytest.warns(UserWarning, match="No NUFFT runs on cpu: it runs on the CPU, and comes back"):
        got = everything()
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-14


@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 16, 10), (1, 32, 32)], ids=str)
def test_the_bytes_predicted_for_torchkbnufft_bound_what_it_takes(shape):
    F = NUFFT(scattered(shape, 3000), shape, engine="torchkbnufft", tolerance=0.1)
    x, y = random(*shape, dtype=torch.complex64), random(3000, dtype=torch.complex64)
    for apply, value in ((F.forward, x), (F.adjoint, y)):
        apply(value)
        with measure_peak() as real:
            apply(value)
        with FakeTensorMode(allow_non_fake_inputs=True), measure_peak() as predicted:
            apply(torch.empty(value.shape, dtype=value.dtype))
        assert real.bytes <= predicted.bytes <= 2 * real.bytes


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["auto", "cufinufft", "torchkbnufft"])
def test_engines_on_cuda_keep_their_tolerance(engine):
    if engine == "cufinufft":
        pytest.importorskip("cufinufft")
    shape = (21, 16, 18)
    trajectory, x = scattered(shape, 400), random(2, *shape)
    F = NUFFT(trajectory.cuda(), shape, engine=engine)
    assert relative(F(x.cuda()).cpu(), DirectFourier(trajectory, shape)(x)) < 1e-4
    assert adjoint_error(F) < 1e-13
    assert adjoint_error(F, dtype=torch.complex64) < 1e-6
    assert relative(F.toeplitz()(x.cuda()), F.normal(x.cuda())) < 1e-3


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_the_single_precision_adjoint_of_coherent_kspace_keeps_the_tolerance(tolerance):
    shape = (40, 30, 36)
    trajectory = radial_3d(300, 80, shape)
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = ((z**2 + y**2 + x**2) < 0.5).to(torch.complex128)
    kspace = DirectFourier(trajectory[::7], shape)(image)
    exact = DirectFourier(trajectory[::7], shape).adjoint(kspace)
    error = NUFFT(trajectory[::7], shape, tolerance=tolerance).adjoint(kspace.to(torch.complex64)) - exact
    assert torch.linalg.vector_norm(error) < tolerance * torch.linalg.vector_norm(exact)
