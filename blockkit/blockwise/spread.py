"""Blocks over several processes: each runs its own windows, and all get the whole volume and the whole gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockkit.group import Group


@dataclass(frozen=True)
class Share:
    """What one process does of a job that several share.

    Attributes
    ----------
    group
        The processes.
    node
        The function that runs the batches of a job, here those of this process: forward and backward.
    places
        In the volume: where the kept part of each block goes, slices (z, y, x). This process's are a share of them.
    """

    group: Group
    node: Any
    places: list[tuple[slice, slice, slice]]


class Spread(torch.autograd.Function):
    """A node of the graph that several processes have: the same volume goes in on all, and the same comes out.

    Forward adds up volumes that are zero but for the blocks of the process. Backward has the whole gradient of the
    output on all processes; what each makes of its own windows, of the volume's gradient and the weights', is added up.
    """

    @staticmethod
    def forward(ctx: Any, job: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """Run the own windows, and add up the volumes of all processes."""
        share: Share = job.share
        own = range(len(share.places))[share.group.share(len(share.places))]

        def part() -> Tensor:
            y: Tensor = share.node.forward(ctx, job, x, *parameters)
            for number, place in enumerate(share.places):
                if number not in own:
                    y[:, *place] = 0
            return y

        return share.group.sum_of("the windows of an unroll", part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Run the own windows again, and add up the gradients of all processes."""
        share: Share = ctx.job.share
        gradients: list[Tensor | None] = []

        def parts() -> list[Tensor]:
            gradients[:] = share.node.backward(ctx, grad_y)
            return _apart([gradient for gradient in gradients if gradient is not None])

        sums = iter(share.group.sums_of("the gradients of an unroll's windows", parts))
        return tuple(None if gradient is None else next(sums) for gradient in gradients)


def _apart(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients that can be changed in place: autograd gives one tensor to several inputs where it can."""
    taken: set[int] = set()
    apart = []
    for gradient in gradients:
        storage = gradient.untyped_storage()._cdata
        own = storage not in taken and gradient.is_contiguous()
        apart.append(gradient if own else gradient.clone(memory_format=torch.contiguous_format))
        taken.add(storage)
    return apart
