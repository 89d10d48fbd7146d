"""What training minimizes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.unrolled import UnrolledNetwork

EARLIER_UNROLLS = 0.3  # weight in the loss of the image after each unroll but the last


def relative_error(image: Tensor, reference: Tensor) -> Tensor:
    """Return ``|image - reference| / |reference|`` (L2), a real tensor without axes. Only ``image`` gets a gradient."""
    error: Tensor = _RelativeError.apply(image, reference)  # type: ignore[no-untyped-call]
    return error


class _RelativeError(torch.autograd.Function):
    """e = |x - r| / |r|. To x goes g (x - r) / (|x - r| |r|): the difference is made again, not kept."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, reference: Tensor) -> Tensor:
        difference, norm = _norm(image - reference), _norm(reference)
        ctx.save_for_backward(image, reference, difference, norm)
        return difference / norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        image, reference, difference, norm = ctx.saved_tensors
        factor = torch.where(difference > 0, g / (difference * norm), torch.zeros_like(g))
        return (image - reference).mul_(factor), None


def _norm(image: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(image)
    return norm


def training_loss(model: UnrolledNetwork, data: DataTerm, target: Tensor | HeldOut) -> tuple[Tensor, Tensor]:
    """Return what is minimized, and the relative error of the last unroll, which counts fully in it.

    The images of the earlier unrolls count :data:`EARLIER_UNROLLS` each. ``target`` is a reference, in the scan's unit,
    or samples that ``data`` has not seen.
    """
    if isinstance(target, HeldOut):
        error = target.relative_error
    else:
        error = partial(relative_error, reference=target / data.scale)
    with model.offloading(data):
        *earlier, last = (error(x) for x in model.iterates(data))
    return last + EARLIER_UNROLLS * sum(earlier), last.detach()
