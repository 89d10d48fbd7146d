"""Held-out samples: what an image is compared with where there is no reference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockkit.ledger import few_for_all, part
from blockkit.physics.sense import Encoding

Change = Callable[[Tensor], Tensor]


def _as_it_is(image: Tensor) -> Tensor:
    return image


@dataclass(frozen=True)
class HeldOut:
    r"""Samples of a scan that the data term has not seen, in the network's own scale.

    Attributes
    ----------
    A
        Encoding operator of these samples, weighted by their density compensation.
    kspace
        What ``A`` gives for a perfect image, apart from noise: complex, shape ``(coil, sample)``. If ``A`` is spread
        over processes, these are the coils of this one, and the error is that of all.
    undo
        Applied to an image before ``A``: takes back what augmentation did to it. Linear over the real numbers, and
        keeps the norm.
    redo
        The inverse of ``undo``, and so its transpose.
    """

    A: Encoding
    kspace: Tensor
    undo: Change = _as_it_is
    redo: Change = _as_it_is

    def relative_error(self, image: Tensor) -> Tensor:
        r"""Return :math:`\|W^{1/2}(A x - y)\| / \|W^{1/2} y\|` (L2) of an image ``(z, y, x)``: real, without axes.

        Coils pass one at a time, also in backward, which makes their residuals again: only ``image`` is kept.
        """
        error: Tensor = _HeldOutError.apply(image, self)  # type: ignore[no-untyped-call]
        return error

    def changed(self, undo: Change, redo: Change) -> "HeldOut":
        """Return the same samples, to be compared with an image that was changed by ``redo``."""
        return replace(self, undo=undo, redo=redo)

    def residuals(self, image: Tensor) -> Iterator[tuple[Encoding, Tensor]]:
        """Give each coil's operator and what it misses, shape ``(1, sample)``."""
        x = self.undo(image)
        for coil in few_for_all([slice(c, c + 1) for c in range(len(self.kspace))], image):
            A = self.A.of_coils(coil)
            yield A, A.forward(x) - self.kspace[coil]


class _HeldOutError(torch.autograd.Function):
    """e = |A u x - y| / |y|. To x goes g u^T A^H (A u x - y) / (|A u x - y| |y|): the residuals are made again."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, held_out: HeldOut) -> Tensor:
        def own_norms() -> list[Tensor]:
            with part("nufft"):
                norms = [torch.linalg.vector_norm(residual) for _, residual in held_out.residuals(image)]
            return [torch.linalg.vector_norm(torch.stack(norms)), torch.linalg.vector_norm(held_out.kspace)]

        missed, size = held_out.A.group.norms_of("the held-out error", own_norms)
        ctx.held_out = held_out
        ctx.save_for_backward(image, missed, size)
        error: Tensor = missed / size
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        image, missed, size = ctx.saved_tensors

        def own_gradient() -> Tensor:
            gradient = torch.zeros_like(image)
            with part("nufft"):
                for A, residual in ctx.held_out.residuals(image):
                    gradient += A.adjoint(residual)
            return gradient

        gradient = ctx.held_out.A.group.sum_of("the gradient of the held-out error", own_gradient)
        factor = torch.where(missed > 0, g / (missed * size), torch.zeros_like(g))
        return ctx.held_out.redo(gradient).mul_(factor), None
