import pytest
import torch

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.group import Group
from blockkit.physics.coils import simulate_maps
from blockkit.physics.fourier import DirectFourier
from blockkit.physics.linop import adjoint_error
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (11, 8, 6)


def random(shape, dtype=torch.complex128, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make(n_coils=5, shape=SHAPE, n_spokes=40, **options):
    return Encoding(radial_3d(n_spokes, 22, shape), simulate_maps(n_coils, shape, seed=1), **options)


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def test_an_operator_that_is_spread_forgets_the_bound_of_its_own_coils_alone():
    A = make()
    bound = A.lipschitz
    assert "lipschitz" not in vars(A.spread_over(Group(0, 2)))
    assert vars(A)["lipschitz"] == bound


WEIGHTS = torch.rand(40 * 22, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", [SHAPE, (1, 13, 8), (7, 1, 9), (5, 5, 5)])
@pytest.mark.parametrize("options", [{}, {"coils_at_once": 2}, {"weights": WEIGHTS}, {"engine": "torchkbnufft"}])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.complex128, 1e-13), (torch.complex64, 1e-6)])
def test_the_adjoint_is_the_conjugate_transpose(shape, options, dtype, bound):
    assert adjoint_error(make(shape=shape, **options), dtype=dtype) < bound


@pytest.mark.parametrize("tolerance", [None, 1e-3, 1e-6])  # None: 1e-4, as the signature says
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_forward_is_the_exact_sum_for_every_coil_below_the_tolerance(tolerance, weights):
    A = make(tolerance=tolerance, weights=weights) if tolerance else make(weights=weights)
    F, x = DirectFourier(A.trajectory, SHAPE), random(SHAPE)
    exact = torch.stack([F(one.to(x.dtype) * x) for one in A.maps])
    exact = exact if weights is None else exact * weights.double().sqrt()
    assert relative(A(x), exact) < (tolerance or 1e-4)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("shape", [SHAPE, (1, 13, 8)])
def test_both_normals_are_adjoint_after_forward(weights, shape):
    toeplitz, pair = (make(shape=shape, normal=kind, weights=weights) for kind in ("toeplitz", "nufft"))
    x = random(shape)
    assert relative(pair.normal(x), pair.adjoint(pair(x))) < 1e-13
    assert relative(toeplitz.normal(x), pair.adjoint(pair(x))) < 1e-4


@pytest.mark.parametrize("normal", ["toeplitz", "nufft"])
def test_coils_at_once_changes_memory_and_never_the_answer(normal):
    x, y = random(SHAPE), random((5, 40 * 22))
    one = make(normal=normal)
    for n in (2, 3, 5, 9):
        many = make(normal=normal, coils_at_once=n)
        assert relative(many(x), one(x)) < 1e-13
        assert relative(many.adjoint(y), one.adjoint(y)) < 1e-13
        assert relative(many.normal(x), one.normal(x)) < 1e-13


def test_the_memory_of_normal_does_not_grow_with_the_number_of_coils():
    peaks = []
    for n_coils in (2, 12):
        A, x = make(n_coils, (16, 16, 16)), random((16, 16, 16), torch.complex64)
        A.normal(x)
        with measure_peak() as peak:
            A.normal(x)
        peaks.append(peak.bytes)
    assert peaks[0] == peaks[1] > 0


def test_more_coils_at_once_take_more_memory():
    peaks = []
    for n in (1, 6):
        A, x = make(6, (16, 16, 16), coils_at_once=n), random((16, 16, 16), torch.complex64)
        A.normal(x)
        with measure_peak() as peak:
            A.normal(x)
        peaks.append(peak.bytes)
    assert peaks[1] - peaks[0] >= 5 * x.nbytes  # five more coil images at once


def cartesian(shape):
    axes = [torch.arange(n, dtype=torch.float32) - n // 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


RADIAL = radial_3d(100, 64, (32, 28, 32))
TRAJECTORIES = {
    "radial": RADIAL,
    "off the center": torch.cat([RADIAL, torch.tensor([[7.3, -4.2, 9.1]]).expand(4000, 3)]),
    "hollow": RADIAL[RADIAL.norm(dim=1) > 9],
    "cartesian": cartesian((32, 28, 32)),
    "one sample": torch.tensor([[3.0, 2.0, -1.0]]),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_lipschitz_bound_holds_and_is_near(name, weighted):
    A = Encoding(TRAJECTORIES[name], simulate_maps(2, (32, 28, 32), seed=1))
    A = A.weighted(A.dcf) if weighted else A
    x = random(A.in_shape, torch.complex64)
    for _ in range(60):
        x = A.normal(x / torch.linalg.vector_norm(x))
    largest = float(torch.linalg.vector_norm(x))
    assert largest <= A.lipschitz < 1.1 * largest


def test_maps_without_coils_or_with_nan_are_refused():
    trajectory, maps = radial_3d(40, 22, SHAPE), simulate_maps(3, SHAPE, seed=1)
    with pytest.raises(ValueError, match=r"maps has shape \(0, 11, 8, 6\), expected at least one coil"):
        Encoding(trajectory, maps[:0])
    maps[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"maps has 1 values .* index \(1, 2, 3, 4\)"):
        Encoding(trajectory, maps)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match="expected real floating point"):
        make(weights=torch.ones(40 * 22, dtype=dtype))


def test_autograd_is_the_adjoint_and_saves_no_tensor():
    A, x, y = make(), random(SHAPE).requires_grad_(), random((5, 40 * 22))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = [A(x), A.normal(x)]
        image = A.adjoint(y.requires_grad_())
    assert saved == []
    (gradient,) = torch.autograd.grad(outputs[0], x, y.detach())
    assert relative(gradient, A.adjoint(y.detach())) < 1e-14
    (gradient,) = torch.autograd.grad(image, y, x.detach())
    assert relative(gradient, A(x.detach())) < 1e-14


def test_weighted_gives_a_new_operator_and_leaves_the_old_one():
    A, x = make(normal="toeplitz"), random(SHAPE)
    before = A.normal(x)
    B = A.weighted(WEIGHTS)
    assert relative(B(x), A(x) * WEIGHTS.double().sqrt()) < 1e-14
    assert relative(B.normal(x), A.adjoint(WEIGHTS * A(x))) < 1e-4
    assert torch.equal(A.normal(x), before)
    assert relative(B.weighted(None).normal(x), before) < 1e-14


def test_what_was_computed_is_computed_anew_for_other_weights_coils_or_fields():
    A = make(normal="toeplitz")
    bound, toeplitz, dcf = A.lipschitz, A.toeplitz, A.dcf
    light = A.weighted(WEIGHTS / 100)
    assert light.lipschitz < bound / 50
    assert light.toeplitz is not toeplitz
    alone = A.of_coils(slice(1, 3))
    assert alone.out_shape == (2, 880)
    assert alone.lipschitz < bound
    assert alone.toeplitz is toeplitz
    off = light.off_resonant(torch.zeros(SHAPE), torch.zeros(880))
    assert not {"toeplitz", "lipschitz"} & set(vars(off))
    assert all(other.dcf is dcf for other in (light, alone, off))
    assert (A.lipschitz, A.toeplitz) == (bound, toeplitz)


def test_the_lipschitz_bound_takes_five_normals(monkeypatch):
    A, images = make(), []
    once = A._normal
    monkeypatch.setattr(A, "_normal", lambda x: images.append(x) or once(x))
    assert A.lipschitz == A.lipschitz
    assert len(images) == 5


def test_off_resonance_is_as_close_as_asked():
    A, field, times = make(1), torch.linspace(-200, 200, 528).view(SHAPE), 1e-3 * torch.arange(22)
    fine, coarse = (A.off_resonant(field, times, tolerance=tolerance).fourier for tolerance in (1e-6, 1e-2))
    assert len(fine.segment_times) > len(coarse.segment_times)


def test_maps_of_double_precision_leave_the_work_in_that_of_the_image(monkeypatch):
    A = Encoding(radial_3d(40, 22, SHAPE), simulate_maps(2, SHAPE).to(torch.complex128))
    dtypes, forward = set(), A.fourier.forward
    monkeypatch.setattr(A.fourier, "forward", lambda x: dtypes.add(x.dtype) or forward(x))
    A(random(SHAPE, torch.complex64))
    assert dtypes == {torch.complex64}


def test_weights_without_values_are_taken_in_a_prediction():
    A, x = make(2, normal="nufft"), random(SHAPE, torch.complex64)
    assert predict_peak(lambda: A.weighted(WEIGHTS * 1)(x)) > predict_peak(A, x)


@pytest.mark.parametrize(
    ("n_spokes", "tolerance", "kind"), [(40, 1e-4, "toeplitz"), (4, 1e-2, "nufft"), (400, 1e-2, "toeplitz")]
)
def test_unless_asked_the_normal_is_the_one_that_pays(n_spokes, tolerance, kind):
    shape = (30, 24, 28)
    assert make(1, shape, n_spokes, tolerance=tolerance).normal_kind == kind
    assert make(1, shape, n_spokes, tolerance=tolerance, normal="nufft").normal_kind == "nufft"


def test_it_says_what_it_is():
    said = "Encoding(5 coils, (11, 8, 6) -> (5, 880), finufft, normal by nufft"
    assert repr(make(normal="nufft")) == said + ")"
    assert repr(make(normal="nufft", weights=WEIGHTS)) == said + ", weighted)"


@pytest.mark.parametrize("name", ["forward", "adjoint", "normal"])
def test_the_work_on_coils_is_booked_as_such_and_few_of_many_are_traced(name, monkeypatch):
    A = make(9, normal="nufft")
    argument, seen = random(A.out_shape if name == "adjoint" else SHAPE, torch.complex64), []
    monkeypatch.setattr(A, "_maps", lambda coils, like: seen.append(coils) or Encoding._maps(A, coils, like))
    with measure_peak() as peak:
        getattr(A, name)(argument)
    assert len(seen) == 9
    assert set(peak.parts) == {"nufft", "other"}
    assert peak.parts["nufft"] > argument.nbytes / 9
    seen.clear()
    predict_peak(getattr(A, name), argument)
    assert seen == [slice(0, 1), slice(1, 2), slice(8, 9)]


def test_the_gridding_reconstruction_of_a_fully_sampled_scan_looks_like_the_image():
    shape = (12, 10, 14)
    A = Encoding(radial_3d(600, 28, shape), simulate_maps(4, shape))
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = torch.exp(-4 * (z**2 + y**2 + x**2)).to(torch.complex64)
    gridding = A.adjoint(A.dcf * A(image))
    assert relative(gridding, image) < 0.05


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make()(random((8, 6))), ValueError, r"expected \(z, y, x\) = \(11, 8, 6\). One axis is missing"),
        (lambda: make()(random((8, 11, 6))), ValueError, "another order"),
        (lambda: make()(random(SHAPE).real), TypeError, "expected torch.complex64"),
        (lambda: make()(random((5, *SHAPE))), ValueError, r"image has shape \(5, 11, 8, 6\)"),
        (lambda: make().normal(random((8, 6))), ValueError, r"image has shape .* expected \(z, y, x\) = \(11, 8, 6\)"),
        (lambda: make().adjoint(None), TypeError, "kspace is a NoneType, expected a torch.Tensor"),
        (lambda: make().adjoint(random((5, 880)).real), TypeError, "kspace has dtype torch.float64"),
        (lambda: make().adjoint(random((4, 880))), ValueError, r"expected \(coil, sample\) = \(5, 880\)"),
        (lambda: make(normal="fast"), ValueError, "normal is 'fast', expected one of 'auto', 'toeplitz', 'nufft'"),
        (lambda: make(coils_at_once=0), ValueError, "coils_at_once is 0"),
        (lambda: make(weights=WEIGHTS[:7]), ValueError, r"expected \(sample,\) = \(880,\)"),
        (lambda: make(weights=[1.0]), TypeError, "weights is a list, expected a torch.Tensor"),
        (lambda: make(weights=WEIGHTS - 0.5), ValueError, f"weights has {int((WEIGHTS < 0.5).sum())} negative values"),
        (lambda: make(weights=WEIGHTS * torch.nan), ValueError, "weights has 880 values that are NaN"),
        (lambda: make(weights=WEIGHTS.long()), TypeError, r"Pass weights\.float\(\)"),
        (lambda: make(weights=WEIGHTS * 1j), TypeError, r"Pass weights\.abs\(\)"),
        (lambda: Encoding(radial_3d(4, 8, SHAPE), [1j]), TypeError, "maps is a list, expected a torch.Tensor"),
        (lambda: Encoding(radial_3d(4, 8, SHAPE), random((8, 6))), ValueError, r"expected \(coil, z, y, x\)\.$"),
        (lambda: Encoding(radial_3d(4, 8, SHAPE), random(SHAPE)), ValueError, r"pass maps\[None\]"),
        (lambda: Encoding(radial_3d(4, 8, SHAPE), random((2, *SHAPE)).real), TypeError, "maps has dtype"),
    ],
)
def test_bad_input_is_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()
