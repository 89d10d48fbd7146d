import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from blockkit.physics.solvers import conjugate_gradient, eigenvalue_bound, fista

SHAPES = [(2, 3, 4), (1, 7, 3), (5, 1, 1), (6,)]
DTYPES = [torch.complex128, torch.float64]


def hermitian_problem(shape, dtype, seed=0):
    """A dense N = M^H M with the spectrum 1 ... 3, a solution, and the map on tensors of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.Size(shape).numel()
    q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator)).Q
    matrix = (q * torch.linspace(1, 3, n, dtype=torch.float64)) @ q.mH
    x = torch.randn(shape, dtype=dtype, generator=generator)
    return (lambda v: (matrix @ v.reshape(-1)).reshape(shape)), x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_conjugate_gradient_solves_the_system(shape, dtype):
    normal, x = hermitian_problem(shape, dtype)
    solution = conjugate_gradient(normal, normal(x), n_iterations=x.numel() + 5)
    torch.testing.assert_close(solution, x, rtol=1e-10, atol=1e-10)
    again = conjugate_gradient(normal, normal(x), x0=torch.ones_like(x), n_iterations=x.numel() + 5)
    torch.testing.assert_close(again, x, rtol=1e-10, atol=1e-10)


def test_conjugate_gradient_minimizes_over_the_krylov_space():
    normal, x = hermitian_problem((3, 4, 5), torch.complex128)
    b = normal(x)
    powers, v = [], b
    for k in range(1, 6):
        powers.append(v.reshape(-1))
        v = normal(v)
        basis = torch.linalg.qr(torch.stack(powers, dim=1)).Q
        image = torch.stack([normal(column.reshape(x.shape)).reshape(-1) for column in basis.T], dim=1)
        best = basis @ torch.linalg.solve(basis.mH @ image, basis.mH @ b.reshape(-1))
        ours = conjugate_gradient(normal, b, n_iterations=k)
        torch.testing.assert_close(ours.reshape(-1), best, rtol=1e-8, atol=1e-8)


def test_conjugate_gradient_stays_at_the_solution_and_at_zero():
    normal, x = hermitian_problem((2, 2, 2), torch.complex128)
    zero = torch.zeros_like(x)
    assert torch.equal(conjugate_gradient(normal, zero, n_iterations=5), zero)
    assert torch.equal(conjugate_gradient(normal, zero, n_iterations=5, tolerance=1e-3), zero)
    assert torch.equal(conjugate_gradient(lambda v: v, x, n_iterations=50), x)


def test_conjugate_gradient_stops_at_its_tolerance_and_not_before():
    normal, x = hermitian_problem((4, 5, 6), torch.complex128)
    b, n_calls = normal(x), [0]

    def counted(v):
        n_calls[0] += 1
        return normal(v)

    solution = conjugate_gradient(counted, b, n_iterations=100, tolerance=1e-4)
    spent = n_calls[0]
    assert torch.linalg.vector_norm(b - normal(solution)) <= 1.001e-4 * torch.linalg.vector_norm(b)
    sooner = conjugate_gradient(normal, b, n_iterations=spent - 1)
    assert torch.linalg.vector_norm(b - normal(sooner)) > 1e-4 * torch.linalg.vector_norm(b)


def test_conjugate_gradient_leaves_its_inputs_alone_and_keeps_precision():
    normal, x = hermitian_problem((2, 3, 4), torch.complex128)
    b, x0 = normal(x), torch.ones_like(x)
    b_before = b.clone()
    conjugate_gradient(normal, b, x0=x0, n_iterations=3)
    assert torch.equal(b, b_before)
    assert torch.equal(x0, torch.ones_like(x))
    assert conjugate_gradient(lambda v: 2 * v, b.to(torch.complex64), n_iterations=2).dtype == torch.complex64


def test_conjugate_gradient_runs_on_fake_tensors_and_under_autograd():
    with FakeTensorMode():
        b = torch.empty(8, 9, 10, dtype=torch.complex64)
        assert conjugate_gradient(lambda v: 2 * v, b, x0=torch.zeros_like(b), n_iterations=3).shape == (8, 9, 10)
    normal, x = hermitian_problem((2, 2, 2), torch.complex128)
    b = normal(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: conjugate_gradient(normal, b, n_iterations=3), b)


def test_the_bound_is_seeded_and_zero_for_the_zero_map():
    normal, _ = hermitian_problem((3, 4, 5), torch.complex128)
    first, same, other = (eigenvalue_bound(normal, (3, 4, 5), n_iterations=3, dtype=torch.complex128, seed=s)
                          for s in (0, 0, 1))  # fmt: skip
    assert first == same
    assert first != other
    assert eigenvalue_bound(torch.zeros_like, (3, 4, 5)) == 0
    with pytest.raises(ValueError, match="NaN or infinity"):
        eigenvalue_bound(lambda v: v * torch.nan, (3, 4, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1)])
@pytest.mark.parametrize("n_iterations", [5, 10, 200])
def test_the_bound_is_above_the_largest_eigenvalue_and_near_it(shape, dtype, n_iterations):
    normal, _ = hermitian_problem(shape, dtype)
    largest = 1.0 if shape == (1, 1, 1) else 3.0
    bound = eigenvalue_bound(normal, shape, n_iterations=n_iterations, dtype=dtype)
    assert largest <= bound < 1.25 * largest
    assert eigenvalue_bound(torch.zeros_like, shape, dtype=dtype) == 0


def test_the_bound_stops_once_it_is_near_enough():
    calls = []
    bound = eigenvalue_bound(lambda v: calls.append(1) or 2 * v, (4, 5, 6), n_iterations=50)
    assert len(calls) == 1
    assert 2 <= bound < 2.01


def lasso(shape, weight):
    normal, x = hermitian_problem(shape, torch.float64)
    b = normal(x)

    def smooth(v):
        image = normal(v)
        return float((v * (image / 2 - b)).sum()), image - b

    def proximal(v):
        shrunk = torch.nn.functional.softshrink(v, weight / 3)
        return shrunk, weight * float(shrunk.abs().sum())

    return smooth, proximal, torch.zeros_like(x)


@pytest.mark.parametrize("shape", SHAPES)
def test_fista_reaches_the_optimality_conditions_of_the_lasso(shape):
    weight = 0.5
    smooth, proximal, zero = lasso(shape, weight)
    solution = fista(smooth, proximal, zero, step_size=1 / 3, n_iterations=300)
    slope = smooth(solution)[1]
    active = solution != 0
    torch.testing.assert_close(slope[active], -weight * solution[active].sign(), rtol=1e-9, atol=1e-9)
    assert bool((slope[~active].abs() <= weight + 1e-9).all())
    assert bool(active.any())


def test_fista_stops_once_settled_and_tells_each_iteration():
    smooth, proximal, zero = lasso((4, 5, 6), 0.1)
    told = []
    early = fista(smooth, proximal, zero, step_size=1 / 3, n_iterations=500, tolerance=1e-9,
                  callback=lambda *step: told.append(step))  # fmt: skip
    exact = fista(smooth, proximal, zero, step_size=1 / 3, n_iterations=500)
    assert [k for k, _, _ in told] == list(range(1, len(told) + 1))
    assert 40 <= len(told) < 200
    assert told[-1][1] is early
    assert told[-1][2] == pytest.approx(smooth(exact)[0] + 0.1 * float(exact.abs().sum()), rel=1e-9)
    assert torch.linalg.vector_norm(early - exact) < 1e-4 * torch.linalg.vector_norm(exact)
    assert not torch.equal(told[0][1], told[1][1])


def test_fista_stops_at_once_when_it_starts_at_the_solution():
    smooth, proximal, zero = lasso((4, 5, 6), 1e6)
    told = []
    solution = fista(smooth, proximal, zero, step_size=1 / 3, n_iterations=500, tolerance=1e-9,
                     callback=lambda *step: told.append(step))  # fmt: skip
    assert torch.equal(solution, zero)
    assert len(told) == 40


def test_fista_stops_although_a_trembling_proximal_never_settles():
    smooth, proximal, zero = lasso((4, 5, 6), 0.1)
    generator, told = torch.Generator().manual_seed(0), []

    def trembling(v):
        x, penalty = proximal(v)
        return x + 1e-2 * torch.randn(x.shape, dtype=x.dtype, generator=generator), penalty

    fista(smooth, trembling, zero, step_size=1 / 3, n_iterations=1000, tolerance=1e-6,
          callback=lambda *step: told.append(step))  # fmt: skip
    assert len(told) < 300


def quadratic(spectrum):
    return (lambda v: (float((spectrum * (v - 1) ** 2).sum() / 2), spectrum * (v - 1))), lambda v: (v, 0.0)


def test_fista_restarts_so_that_it_converges_linearly_without_ripples():
    smooth, identity = quadratic(torch.logspace(-2, 0, 60, dtype=torch.float64))
    costs = []
    fista(smooth, identity, torch.zeros(60, dtype=torch.float64), step_size=1.0, n_iterations=300,
          callback=lambda k, x, objective: costs.append(smooth(x)[0]))  # fmt: skip
    assert costs[-1] < 1e-12 * costs[0]
    assert sum(max(0.0, b - a) for a, b in itertools.pairwise(costs)) < 1e-12 * costs[0]


def test_fista_leaves_its_start_alone_and_refuses_divergence():
    smooth, proximal, zero = lasso((2, 3, 4), 0.1)
    start = torch.ones_like(zero)
    fista(smooth, proximal, start, step_size=1 / 3, n_iterations=5, tolerance=1e-3)
    assert torch.equal(start, torch.ones_like(zero))
    with pytest.raises(ValueError, match="diverged at step_size"):
        fista(smooth, proximal, start, step_size=1e9, n_iterations=100)


@pytest.mark.parametrize("solver", ["cg", "fista"])
def test_numbers_out_of_range_are_refused(solver):
    b = torch.ones(2, 2, 2)

    def run(**options):
        if solver == "cg":
            return conjugate_gradient(lambda v: v, b, **options)
        return fista(*quadratic(b), b, step_size=1.0, **{"n_iterations": 3, **options})

    with pytest.raises(ValueError, match="n_iterations is 0, expected at least 1"):
        run(n_iterations=0)
    with pytest.raises(TypeError, match="expected a whole number"):
        run(n_iterations=2.5)
    with pytest.raises(ValueError, match="tolerance is 1"):
        run(tolerance=1)
    with pytest.raises(ValueError, match="tolerance is nan"):
        run(tolerance=float("nan"))


def test_wrong_starts_and_steps_are_refused():
    b = torch.ones(2, 2, 2)
    with pytest.raises(ValueError, match=r"x0 has shape \(2, 2\), expected that of b"):
        conjugate_gradient(lambda v: v, b, x0=b[0])
    with pytest.raises(TypeError, match="b is a list"):
        conjugate_gradient(lambda v: v, [1.0])
    for step_size in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="step_size is"):
            fista(*quadratic(b), b, step_size=step_size, n_iterations=3)
    with pytest.raises(TypeError, match=r"x0 is a ndarray, expected a torch\.Tensor\. Write torch\.as_tensor\(x0\)"):
        fista(*quadratic(b), b.numpy(), step_size=1.0, n_iterations=3)


def test_a_bound_without_iterations_or_of_an_infinite_map_is_refused():
    with pytest.raises(ValueError, match="n_iterations is 0, expected at least 1"):
        eigenvalue_bound(lambda v: v, (2, 2, 2), n_iterations=0)
    with pytest.raises(TypeError, match=r"n_iterations is 2\.5, expected a whole number"):
        eigenvalue_bound(lambda v: v, (2, 2, 2), n_iterations=2.5)
    with pytest.raises(ValueError, match="the largest eigenvalue is not finite"):
        eigenvalue_bound(lambda v: v * 1e30 * 1e30, (2, 2, 2))
