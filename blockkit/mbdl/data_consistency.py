"""Data consistency: the scan's data term, made once, and the steps towards it with their exact backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from blockkit.checks import check_finite, check_tensor
from blockkit.group import ALONE, Group
from blockkit.physics.sense import Encoding
from blockkit.physics.solvers import conjugate_gradient

DATA_TERMS = ("density", "unweighted", "cg")

Normal = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DataTerm:
    r"""What the unrolls need of a scan, in the network's own scale: :math:`N = A^H A / L`, :math:`b = A^H y / (L s)`.

    Attributes
    ----------
    normal
        Applies N to an image ``(z, y, x)``; its largest eigenvalue is at most 1.
    b
        Right-hand side, complex, shape ``(z, y, x)``.
    start
        Scaled gridding reconstruction, complex, shape ``(z, y, x)``: the first iterate, of magnitude about 1.
    scale
        ``s``, a real tensor without axes: multiply an image of the network's scale by it to get the scan's own unit.
    group
        The processes that share the scan: N is that of all coils, and all that is here is alike on all of them.
    """

    normal: Normal
    b: Tensor
    start: Tensor
    scale: Tensor
    group: Group = ALONE


def prepare(A: Encoding, kspace: Tensor, data_term: str = "density") -> DataTerm:
    r"""Make the data term of a scan: bound L, gridding start, scale. Done once a scan; training keeps it.

    The start is :math:`c\, A^H W y`, with ``W`` the density compensation and ``c`` the factor that fits the data best.
    The scale is :math:`(\sum|x|^4 / \sum|x|^2)^{1/2}` of the start: a mean magnitude that air around the body does not
    change.

    Parameters
    ----------
    A
        Encoding operator of the scan. If it already carries weights, they are the data term's.
    kspace
        What ``A`` maps to: complex, shape ``(coil, sample)``, any unit.
    data_term
        ``"density"``: residuals weighted by the density compensation; ``"unweighted"`` and ``"cg"``: as measured.

    Raises
    ------
    ValueError
        If ``kspace`` holds NaN or infinity, or it or the maps require a gradient: scale and start are not
        differentiated. If ``A`` is spread over processes, and they have different scans.
    """
    return A.group.together("the data term", lambda: _prepare(A, kspace, data_term))


def _prepare(A: Encoding, kspace: Tensor, data_term: str) -> DataTerm:
    if data_term not in DATA_TERMS:
        raise ValueError(f"data_term is {data_term!r}, expected one of {', '.join(map(repr, DATA_TERMS))}.")
    A.group.agree(f"a scan of {A.out_shape[1]} samples and an image of {A.in_shape}, {kspace.dtype}, by {data_term!r}")
    A.group.check_alike("trajectory", lambda: A.trajectory.norm(dim=0), "Give all processes parts of one scan.")
    unit = _unit(kspace, A)
    if data_term == "density" and A.weights is None:
        A, kspace = A.weighted(A.dcf), kspace * (A.dcf.to(unit.dtype).sqrt() / unit)
    else:
        kspace = kspace / unit
    bound = A.lipschitz
    b = A.adjoint(kspace) / bound
    gridded = b if A.weights is not None else A.adjoint(kspace * A.dcf.to(kspace.real.dtype))

    def normal(x: Tensor) -> Tensor:
        return A.normal(x).div_(bound)

    with torch.no_grad():
        fit = _ratio(_inner(gridded, b), _inner(gridded, normal(gridded)))
        magnitude = (gridded * fit).abs().square_()
        scale = _ratio(magnitude.square().sum(), magnitude.sum()).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return DataTerm(normal, b / scale, gridded * (fit / scale), scale * unit, A.group)


def _unit(kspace: Tensor, A: Encoding) -> Tensor:
    """Return the largest magnitude in ``kspace``, 1 if all is zero: divided by it, no square can over- or underflow."""
    check_tensor(kspace, "kspace")
    for name, value in (("kspace", kspace), ("maps", A.maps)):
        if value.requires_grad:
            raise ValueError(f"{name} requires a gradient, expected measured data: write {name}.detach().")
    own = torch.stack([torch.linalg.vector_norm(coil, torch.inf) for coil in kspace]).amax()
    if not isinstance(own, FakeTensor) and not torch.isfinite(own):
        check_finite(kspace, "kspace")
    largest = A.group.largest("the unit of k-space", own)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def gradient_step(x: Tensor, step_size: Tensor, data: DataTerm) -> Tensor:
    r"""Return :math:`z = x - \tau (N x - b)`; backward keeps ``x`` alone and applies N once."""
    z: Tensor = _GradientStep.apply(x, step_size, data.b, data.normal)  # type: ignore[no-untyped-call]
    return z


class _GradientStep(torch.autograd.Function):
    """z = x - tau (N x - b). With h = N g: to x goes g - tau h, to tau goes -(Re<h, x> - Re<g, b>), to b goes tau g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step_size: Tensor, b: Tensor, normal: Normal) -> Tensor:
        ctx.normal = normal
        ctx.save_for_backward(x, step_size, b)
        return normal(x).sub_(b).mul_(-step_size).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, step_size, b = ctx.saved_tensors
        needs_x, needs_step, needs_b, _ = ctx.needs_input_grad
        to_x = to_step = None
        if needs_x or needs_step:
            h = ctx.normal(g)
            to_step = (_inner(g, b) - _inner(h, x)).to(step_size.dtype)
            to_x = h.mul_(-step_size).add_(g)
        return to_x, to_step, (step_size * g if needs_b else None), None


def gradient_channels(x: Tensor, step_size: Tensor, data: DataTerm) -> Tensor:
    r"""Return :math:`z = x - \tau g` and the gradient :math:`g = N x - b` as real channels ``(4, z, y, x)``.

    Backward applies N once, and keeps only what is returned, which a regularizer keeps as well.
    """
    channels: Tensor = _GradientChannels.apply(x, step_size, data.b, data.normal)  # type: ignore[no-untyped-call]
    return channels


class _GradientChannels(torch.autograd.Function):
    """z = x - tau g, g = N x - b. With u = g_g - tau g_z: to x goes g_z + N u, to tau -Re<g, g_z>, to b goes -u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step_size: Tensor, b: Tensor, normal: Normal) -> Tensor:
        ctx.normal = normal
        channels = x.real.new_empty(4, *x.shape)
        g = normal(x).sub_(b)
        channels[2:] = torch.view_as_real(g).movedim(-1, 0)
        channels[:2] = torch.view_as_real(g.mul_(-step_size).add_(x)).movedim(-1, 0)
        ctx.save_for_backward(channels, step_size)
        return channels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        channels, step_size = ctx.saved_tensors
        needs_x, needs_step, needs_b, _ = ctx.needs_input_grad
        to_step = -_inner(channels[2:], grad[:2]).to(step_size.dtype) if needs_step else None
        u = _as_image(grad[2:] - step_size * grad[:2])
        to_x = ctx.normal(u).add_(_as_image(grad[:2])) if needs_x else None
        return to_x, to_step, (-u if needs_b else None), None


def _as_image(pair: Tensor) -> Tensor:
    """Return real and imaginary part ``(2, z, y, x)`` as a complex image."""
    return torch.view_as_complex(pair.movedim(0, -1).contiguous())


def proximal_step(x: Tensor, penalty: Tensor, data: DataTerm, n_iterations: int = 8) -> Tensor:
    r"""Return :math:`z = \arg\min \frac12\|A z - y\|^2 / L + \frac\mu2\|z - x\|^2` by conjugate gradient from ``x``.

    Backward solves the same system for the gradient (implicit differentiation), so it is exact in the limit of many
    iterations, and keeps ``x`` and ``z`` only.

    References
    ----------
    .. [1] Aggarwal, Mani, Jacob, "MoDL: model-based deep learning architecture for inverse problems",
       IEEE TMI 38(2), 2019.
    """
    z: Tensor = _ProximalStep.apply(x, penalty, data.b, data.normal, n_iterations)  # type: ignore[no-untyped-call]
    return z


class _ProximalStep(torch.autograd.Function):
    """(N + mu) z = b + mu x. With (N + mu) v = g: to x goes mu v, to mu goes Re<v, x - z>, to b goes v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor, b: Tensor, normal: Normal, n_iterations: int) -> Tensor:
        def system(v: Tensor) -> Tensor:
            return normal(v).add_(penalty * v)

        z = conjugate_gradient(system, b + penalty * x, x0=x, n_iterations=n_iterations)
        ctx.system, ctx.n_iterations = system, n_iterations
        ctx.save_for_backward(x, penalty, z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, penalty, z = ctx.saved_tensors
        v = conjugate_gradient(ctx.system, g, n_iterations=ctx.n_iterations)
        needs_x, needs_penalty, needs_b, _, _ = ctx.needs_input_grad
        to_penalty = _inner(v, x - z).to(penalty.dtype) if needs_penalty else None
        return (penalty * v if needs_x else None), to_penalty, (v if needs_b else None), None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product, without a temporary of the images' size."""
    return torch.vdot(a.flatten(), b.flatten()).real


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), torch.ones_like(below))
