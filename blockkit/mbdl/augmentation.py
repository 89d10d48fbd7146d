"""Augmentation: the same scan as of a mirrored body, with another phase, at no cost."""

import torch
from torch import Tensor

from blockkit.mbdl.data_consistency import DataTerm


def mirrored(data: DataTerm, reference: Tensor, generator: torch.Generator) -> tuple[DataTerm, Tensor]:
    r"""Return a scan's data term and reference after a random change that the physics allows.

    Each axis is mirrored or not, the image is conjugated or not, and its phase is turned: :math:`x' = e^{i\phi} T x`,
    with T its own inverse. If :math:`N x = b` then :math:`T N T x' = e^{i\phi} T b`: the changed data term is exactly
    that of the changed image, seen by coils and a trajectory that are mirrored too. Nothing is interpolated.

    Parameters
    ----------
    data
        Data term of the scan as it was measured.
    reference
        Complex, shape ``(z, y, x)``.
    generator
        Draws the change: on the CPU.

    Returns
    -------
    tuple
        Data term and reference, both new; ``data`` stays as it is.
    """
    axes = [axis for axis in range(3) if _coin(generator)]
    conjugate = _coin(generator)
    angle = 2 * torch.pi * torch.rand((), generator=generator, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle).to(reference)

    def change(x: Tensor) -> Tensor:
        x = x.flip(axes) if axes else x
        return x.conj().resolve_conj() if conjugate else x

    def normal(x: Tensor) -> Tensor:
        return change(data.normal(change(x)))

    return DataTerm(normal, turn * change(data.b), turn * change(data.start), data.scale), turn * change(reference)


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)
