"""Linear operators: the one abstraction of the physics wing, and the dot test that every operator passes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class LinearOperator(ABC):
    """A linear map between two spaces of complex arrays: a plain immutable object, not a network layer.

    Subclasses set ``in_shape`` and ``out_shape``, implement :meth:`forward` and :meth:`adjoint`, and are final.
    The precision of the result follows the precision of the input.

    Examples
    --------
    >>> class Half(bk.LinearOperator):
    ...     in_shape = out_shape = (4,)
    ...
    ...     def forward(self, x):
    ...         return x / 2
    ...
    ...     def adjoint(self, y):
    ...         return y / 2
    >>> (Half() @ Half())(torch.ones(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator: ``in_shape`` to ``out_shape``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose: ``out_shape`` to ``in_shape``."""

    def normal(self, x: Tensor) -> Tensor:
        """Apply adjoint after forward. Subclasses may put something faster here that equals it."""
        return self.adjoint(self.forward(x))

    @property
    def device(self) -> torch.device:
        """Where the operator expects its input."""
        for value in vars(self).values():
            if isinstance(value, Tensor | LinearOperator):
                return value.device
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Return a new operator on ``device``; this one stays as it is."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | LinearOperator):
                object.__setattr__(moved, name, value.to(device))
        return moved

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator, the same as :meth:`forward`."""
        return self.forward(x)

    def __matmul__(self, other: "LinearOperator") -> "Composition":
        """Compose: ``(F @ S)(x)`` is ``F(S(x))``."""
        if not isinstance(other, LinearOperator):
            raise TypeError(f"the right side of @ is a {type(other).__name__}, expected an operator. For data: A(x).")
        return Composition(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_shape} -> {self.out_shape})"


class Composition(LinearOperator):
    r"""One operator after another: :math:`(A B) x = A (B x)`, with adjoint :math:`B^H A^H`.

    Raises
    ------
    ValueError
        If what ``inner`` gives is not what ``outer`` takes.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.in_shape != inner.out_shape:
            raise ValueError(
                f"{inner!r} gives shape {inner.out_shape}, but {outer!r} expects {outer.in_shape}. "
                "In A @ B the right operator is applied first: are the two swapped?"
            )
        self.outer, self.inner = outer, inner
        self.in_shape, self.out_shape = inner.in_shape, outer.out_shape

    def forward(self, x: Tensor) -> Tensor:
        """Apply ``inner``, then ``outer``."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint of ``outer``, then that of ``inner``."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        """Apply adjoint after forward, through the outer operator's own ``normal``."""
        return self.inner.adjoint(self.outer.normal(self.inner.forward(x)))


def apply_linear(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
    """Return ``forward(x)``, a linear map, with ``adjoint`` as its backward; autograd saves no tensor for it.

    Inside ``forward`` and ``adjoint`` no graph is built, so a library outside torch can do the work.
    """
    result: Tensor = _Linear.apply(x, forward, adjoint)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        ctx.forward, ctx.adjoint = forward, adjoint
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return apply_linear(grads[0], ctx.adjoint, ctx.forward), None, None


def adjoint_error(A: LinearOperator, *, dtype: torch.dtype = torch.complex128, seed: int = 0) -> float:
    r"""Run the dot test: :math:`|\langle A x, y\rangle - \langle x, A^H y\rangle| / (\|A x\| \|y\|)`.

    Parameters
    ----------
    A
        The operator under test.
    dtype
        Precision of the random ``x`` and ``y``: ``torch.complex128`` or ``torch.complex64``.
    seed
        Seed of the random ``x`` and ``y``.

    Returns
    -------
    float
        No unit. Below 1e-13 in complex128 and 1e-6 in complex64 for an operator whose adjoint is its adjoint.

    References
    ----------
    .. [1] Claerbout, "Basic Earth Imaging", 2014: the dot-product test.

    Examples
    --------
    >>> A = bk.Encoding(scan.trajectory, scan.maps)
    >>> bk.adjoint_error(A) < 1e-13
    True
    >>> bk.adjoint_error(A, dtype=torch.complex64) < 1e-6
    True
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(A.in_shape, dtype=dtype, generator=generator).to(A.device)
    y = torch.randn(A.out_shape, dtype=dtype, generator=generator).to(A.device)
    Ax, AHy = A.forward(x).to(torch.complex128), A.adjoint(y).to(torch.complex128)
    x, y = x.to(torch.complex128), y.to(torch.complex128)
    difference = torch.vdot(Ax.flatten(), y.flatten()) - torch.vdot(x.flatten(), AHy.flatten())
    scale = torch.linalg.vector_norm(Ax) * torch.linalg.vector_norm(y)
    return float(difference.abs() / scale) if scale > 0 else float(difference.abs())
