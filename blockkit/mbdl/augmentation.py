"""Augmentation: the same scan as of a mirrored body, with another phase, at no cost."""

from dataclasses import replace

import torch
from torch import Tensor

from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.held_out import HeldOut


def mirrored(data: DataTerm, target: Tensor | HeldOut, generator: torch.Generator) -> tuple[DataTerm, Tensor | HeldOut]:
    r"""Return a scan's data term and its target after a random change that the physics allows.

    Each axis is mirrored or not, the image is conjugated or not, and its phase is turned: :math:`x' = e^{i\phi} T x`,
    with T its own inverse. If :math:`N x = b` then :math:`T N T x' = e^{i\phi} T b`: the changed data term is exactly
    that of the changed image, seen by coils and a trajectory that are mirrored too. Nothing is interpolated. Held-out
    samples stay what they are: the changed image is changed back before it is compared with them.

    Parameters
    ----------
    data
        Data term of the scan as it was measured.
    target
        The reference, complex, shape ``(z, y, x)``; or held-out samples.
    generator
        Draws the change: on the CPU.

    Returns
    -------
    tuple
        Data term and target, both new; ``data`` stays as it is.
    """
    axes = [axis for axis in range(3) if _coin(generator)]
    conjugate = _coin(generator)
    angle = 2 * torch.pi * torch.rand((), generator=generator, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle).to(data.b)

    def change(x: Tensor) -> Tensor:
        x = x.flip(axes) if axes else x
        return x.conj().resolve_conj() if conjugate else x

    def normal(x: Tensor) -> Tensor:
        return change(data.normal(change(x)))

    def redo(x: Tensor) -> Tensor:
        return turn * change(x)

    def undo(x: Tensor) -> Tensor:
        return change(turn.conj() * x)

    changed = target.changed(undo, redo) if isinstance(target, HeldOut) else redo(target)
    return replace(data, normal=normal, b=redo(data.b), start=redo(data.start)), changed


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)
