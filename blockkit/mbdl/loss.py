"""What training minimizes."""

import torch
from torch import Tensor

from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.unrolled import UnrolledNetwork

EARLIER_UNROLLS = 0.3  # weight in the loss of the image after each unroll but the last


def relative_error(image: Tensor, reference: Tensor) -> Tensor:
    """Return ``|image - reference| / |reference|`` (L2), a real tensor without axes."""
    difference = torch.linalg.vector_norm(torch.view_as_real(image - reference))
    error: Tensor = difference / torch.linalg.vector_norm(torch.view_as_real(reference))
    return error


def training_loss(model: UnrolledNetwork, data: DataTerm, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is minimized, and the relative error of the last unroll, which counts fully in it.

    The images of the earlier unrolls count :data:`EARLIER_UNROLLS` each.
    """
    target = reference / data.scale
    with model.offloading(data):
        *earlier, last = (relative_error(x, target) for x in model.iterates(data))
    return last + EARLIER_UNROLLS * sum(earlier), last.detach()
