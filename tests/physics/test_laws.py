"""The laws that every linear operator obeys, tried on the whole registry."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from operators import OPERATORS
from torch import Tensor

from blockkit.physics.linop import LinearOperator, adjoint_error
from blockkit.physics.sense import Encoding

Make = Callable[[], LinearOperator]
every_operator = pytest.mark.parametrize("make", [make for _, make in OPERATORS], ids=[name for name, _ in OPERATORS])
ROUNDING = {torch.complex64: 1e-6, torch.complex128: 1e-13}
every_precision = pytest.mark.parametrize("dtype", ROUNDING, ids=["complex64", "complex128"])


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.complex128, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


@every_operator
@every_precision
@pytest.mark.parametrize("seed", [0, 1])
def test_adjoint_is_the_conjugate_transpose(make: Make, dtype: torch.dtype, seed: int) -> None:
    assert adjoint_error(make(), dtype=dtype, seed=seed) < ROUNDING[dtype]


@every_operator
def test_normal_is_adjoint_after_forward(make: Make) -> None:
    A = make()
    x = random(A.in_shape)
    by_toeplitz = isinstance(A, Encoding) and A.normal_kind == "toeplitz"
    bound = A.fourier.tolerance if by_toeplitz else 1e-13  # a Toeplitz normal has the error of its kernel
    assert relative(A.normal(x), A.adjoint(A.forward(x))) < bound


@every_operator
def test_forward_and_adjoint_are_linear(make: Make) -> None:
    A = make()
    for apply, shape in ((A.forward, A.in_shape), (A.adjoint, A.out_shape)):
        a, b = random(shape, seed=1), random(shape, seed=2)
        assert relative(apply(a + (2 - 3j) * b), apply(a) + (2 - 3j) * apply(b)) < 1e-12


@every_operator
def test_shapes_are_those_announced(make: Make) -> None:
    A = make()
    assert A(random(A.in_shape)).shape == A.out_shape
    assert A.adjoint(random(A.out_shape)).shape == A.in_shape


@every_operator
@every_precision
def test_precision_follows_the_input(make: Make, dtype: torch.dtype) -> None:
    A = make()
    assert A.forward(random(A.in_shape, dtype)).dtype == dtype
    assert A.adjoint(random(A.out_shape, dtype)).dtype == dtype


@every_operator
def test_single_precision_agrees_with_double(make: Make) -> None:
    A = make()
    x, y = random(A.in_shape), random(A.out_shape)
    bound = 1e-5 if "Fourier" in repr(A) or "Toeplitz" in repr(A) else 2 * getattr(A, "tolerance", 1e-4)
    assert relative(A.forward(x.to(torch.complex64)), A.forward(x)) < bound
    assert relative(A.adjoint(y.to(torch.complex64)), A.adjoint(y)) < bound


@every_operator
def test_gradients_are_those_of_finite_differences(make: Make) -> None:
    A = make()
    x, y = random(A.in_shape).requires_grad_(), random(A.out_shape).requires_grad_()
    assert torch.autograd.gradcheck(A.forward, x, fast_mode=True, nondet_tol=1e-12)
    assert torch.autograd.gradcheck(A.adjoint, y, fast_mode=True, nondet_tol=1e-12)


@every_operator
def test_the_gradient_of_the_data_misfit_is_the_normal_equation(make: Make) -> None:
    A = make()
    x, y = random(A.in_shape).requires_grad_(), random(A.out_shape)
    (0.5 * (A(x) - y).abs().square().sum()).backward()
    assert x.grad is not None
    assert relative(x.grad, A.adjoint(A.forward(x.detach()) - y)) < 1e-12


@every_operator
def test_autograd_saves_no_tensor(make: Make) -> None:
    A = make()
    x = random(A.in_shape).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        A.adjoint(A.forward(x))
    assert saved == []


@every_operator
def test_to_gives_a_new_operator_that_does_the_same(make: Make) -> None:
    A = make()
    x = random(A.in_shape)
    before = A(x)
    B = A.to("cpu")
    assert B is not A
    assert repr(B) == repr(A)
    assert relative(B(x), before) < 1e-13


@every_operator
def test_copies_and_pickles_do_the_same(make: Make) -> None:
    A = make()
    x = random(A.in_shape)
    before = A(x)
    for B in (copy.copy(A), copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        assert relative(B(x), before) < 1e-13


@every_operator
def test_inputs_are_left_as_they_were(make: Make) -> None:
    A = make()
    x, y = random(A.in_shape), random(A.out_shape)
    A.forward(x)
    A.adjoint(y)
    assert torch.equal(x, random(A.in_shape))
    assert torch.equal(y, random(A.out_shape))


@every_operator
def test_strides_and_lazy_conjugates_do_not_matter(make: Make) -> None:
    A = make()
    for apply, shape in ((A.forward, A.in_shape), (A.adjoint, A.out_shape)):
        x = random(shape)
        turned = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        assert relative(apply(turned), apply(x)) < 1e-13
        assert relative(apply(x.conj()), apply(x.conj().resolve_conj())) < 1e-13


@every_operator
def test_nothing_of_a_dropped_operator_stays_behind(make: Make) -> None:
    A = make()
    A(random(A.in_shape).requires_grad_()).abs().sum().backward()
    watch = weakref.ref(A)
    del A
    gc.collect()
    assert watch() is None
