"""The heart: run a network on a volume block by block, with exactly the whole volume's output and gradients.

Training a network on a whole volume keeps every layer's activations at full size until backward. Here the volume is
cut into blocks; each is computed inside a larger window, and only the block is kept. One axis of 24 voxels, in blocks
of 8 with a halo of 3::

                0       8       16      24
    volume      AAAAAAAABBBBBBBBCCCCCCCC
    window 0    ========...:::                  =  kept: every voxel of the volume comes from one block
    window 1         ...========...             .  halo: computed, thrown away
    window 2              :::...========        :  the same; so that windows are all of one size and run together

Why it is exact. A convolutional network sees only ``radius`` voxels around each output voxel (:mod:`.reach`). Inside
the window, what lies more than the halo away from a kept voxel cannot change it, so a halo of at least the radius
gives the same output as the whole volume does. Windows move inward at the edges of the volume, so that the network's
own zero padding acts where it acts on the whole volume and nowhere else that matters. A network with stride 2 treats
even and odd voxels differently, so blocks and windows start at multiples of the stride.

Why it is small. Forward builds no graph. Backward takes the blocks once more: it runs one batch of windows with a
graph, differentiates it, adds into the gradients, and drops the graph before the next batch. At no time is there more
than one batch of activations, however large the volume.

Read on in this order: :class:`Block` and :func:`cut_blocks` (where things are), :class:`Blockwise` (the two loops),
:func:`apply_blockwise` (the door).

References
----------
.. [1] Pinckaers, van Ginneken, Litjens, "Streaming convolutional neural networks for end-to-end learning with
   multi-megapixel images", IEEE TPAMI, 2020: tiles, forward and backward, with the whole image's result.
.. [2] Miller, Pirasteh, Johnson, "Memory efficient model based deep learning reconstructions for high spatial
   resolution 3D non-Cartesian acquisitions", arXiv 2204.13862: block-wise learning for unrolled reconstruction.
.. [3] Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", arXiv 1604.06174, 2016: recompute.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from blockkit.blockwise import guards
from blockkit.blockwise.spread import Share, Spread
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3, check_count
from blockkit.group import ALONE, Group
from blockkit.ledger import few_for_all, part

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Block:
    """One block: what the network is given, and which part of the answer goes where. Slices (z, y, x)."""

    window: Slices
    """In the volume: the block and its halo, the network's input. The same size for every block."""
    kept: Slices
    """In the window: the block without its halo."""
    place: Slices
    """In the volume: where the kept part goes."""


def cut_blocks(volume_shape: Shape3, block_shape: Shape3, halo: Shape3, stride: Shape3 = (1, 1, 1)) -> list[Block]:
    """Cut a volume into blocks, each in a window that has at least ``halo`` voxels around it or the volume's edge.

    Parameters
    ----------
    volume_shape
        Voxels (z, y, x), a multiple of ``stride``.
    block_shape
        The largest block (z, y, x). An axis is cut into as few blocks as this allows, as equal as ``stride`` allows.
    halo
        Voxels on each side (z, y, x), rounded up to ``stride``.
    stride
        Blocks and windows start at multiples of this (z, y, x).
    """
    axes = [cut_axis(*sizes) for sizes in zip(volume_shape, block_shape, halo, stride, strict=True)]
    return [Block(*((a[i], b[i], c[i]) for i in range(3))) for a, b, c in product(*axes)]


def cut_axis(size: int, block: int, halo: int, stride: int) -> list[tuple[slice, slice, slice]]:
    """Cut one axis: for each block its window, the part it keeps in the window, and its place."""
    n_blocks = -(-size // round_up(block, stride))
    block, halo = round_up(-(-size // n_blocks), stride), round_up(halo, stride)
    places = [(start, min(start + block, size)) for start in range(0, size, block)]
    length = max(min(stop + halo, size) - max(start - halo, 0) for start, stop in places)
    cuts = []
    for start, stop in places:
        first = min(max(start - halo, 0), size - length)
        cuts.append((slice(first, first + length), slice(start - first, stop - first), slice(start, stop)))
    return cuts


@dataclass
class _Batch:
    """Some blocks that run together, and what backward needs to run them again."""

    blocks: list[Block]
    graph: "_Graph | None" = None
    random_state: list[Tensor] = field(default_factory=list)


@dataclass
class _Graph:
    """One batch of windows after the network: the leaves that its gradients belong to, and the output."""

    windows: list[Tensor]
    parameters: list[Tensor]
    output: Tensor

    def differentiate(self, blocks: list[Block], grad_y: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return the gradients of the windows and of the parameters. Outside the kept part ``grad_y`` is zero."""
        grad_output = torch.zeros_like(self.output)
        for i, block in enumerate(blocks):
            grad_output[i][:, *block.kept] = grad_y[:, *block.place]
        leaves = [leaf for leaf in (*self.windows, *self.parameters) if leaf.requires_grad]
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if self.output.requires_grad:
            grads = torch.autograd.grad(self.output, leaves, grad_output, allow_unused=True)
        n_windows = len(leaves) - len(self.parameters)
        return list(grads[:n_windows]), list(grads[n_windows:])


@dataclass(frozen=True)
class _Job:
    """What stays the same from the first batch of forward to the last batch of backward."""

    network: nn.Module
    numbers: dict[str, int]
    batches: list[_Batch]
    keep_graphs: bool
    exact: bool
    autocast: Callable[[], AbstractContextManager[object]]
    share: Share

    def rounds(self, x: Tensor) -> Sequence[_Batch]:
        """Return the batches to take one after the other: all, unless memory is predicted and each drops its graph."""
        return self.batches if self.keep_graphs else few_for_all(self.batches, x)

    def run(self, batch: _Batch, x: Tensor, parameters: Sequence[Tensor], *, grad_x: bool) -> _Graph:
        """Cut the windows out of ``x`` and give them to the network as one batch, on leaves of their own."""
        build = torch.is_grad_enabled()
        windows = [x.detach()[:, *block.window].requires_grad_(build and grad_x) for block in batch.blocks]
        leaves = [parameter.detach().requires_grad_(build) for parameter in parameters]
        unchanged = guards.no_side_effects(self.network, x.device) if self.exact else nullcontext()
        precision = guards.precision_named(self.network, x)
        with self.autocast(), guards.parametrizations_afresh(), unchanged, precision:
            weights = {name: leaves[number] for name, number in self.numbers.items()}
            output = functional_call(self.network, weights, (torch.stack(windows),), tie_weights=False)
        guards.check_output(output, (len(windows), *windows[0].shape))
        guards.check_leaves(output, (*windows, *leaves))
        return _Graph(windows, leaves, output)


class Blockwise(torch.autograd.Function):
    """The network on the whole volume as one node of the graph, whatever the number of blocks.

    Slicing, checkpointing and assigning block by block would make several nodes a block, each with a gradient of the
    size of the volume. Here each gradient is allocated once, and every batch adds into it.
    """

    @staticmethod
    def forward(ctx: Any, job: _Job, x: Tensor, *parameters: Tensor) -> Tensor:
        """Run batch by batch, without a graph, and put the kept parts together."""
        ctx.job, ctx.parameters = job, parameters
        ctx.save_for_backward(x)
        y: Tensor | None = None
        for batch in job.rounds(x):
            batch.random_state = [] if job.exact else guards.random_state(x.device)
            with torch.set_grad_enabled(job.keep_graphs), part("windows"):
                graph = job.run(batch, x, parameters, grad_x=ctx.needs_input_grad[1])
            if y is None:
                y = graph.output.new_empty((graph.output.shape[1], *x.shape[1:]))
            for block, output in zip(batch.blocks, graph.output, strict=True):
                y[:, *block.place] = output[:, *block.kept]
            batch.graph = graph if job.keep_graphs else None
        ctx.state = guards.State(job.network, parameters, exact=job.exact)
        return cast(Tensor, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Run batch by batch again, with a graph, and add up the gradients."""
        (x,), job = ctx.saved_tensors, ctx.job
        ctx.state.check(job.network)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * len(ctx.parameters)
        for batch in job.rounds(x):
            graph, batch.graph = batch.graph, None
            if graph is None:
                with torch.enable_grad(), part("windows"), guards.random_state_as(batch.random_state, x.device):
                    graph = job.run(batch, x, ctx.parameters, grad_x=grad_x is not None)
            with part("windows"):
                grad_windows, grad_parameters = graph.differentiate(batch.blocks, grad_y)
            for block, grad in zip(batch.blocks, grad_windows, strict=False):
                if grad_x is not None and grad is not None:
                    grad_x[:, *block.window] += grad
            with part("weights"):
                grads = [_add(total, one) for total, one in zip(grads, grad_parameters, strict=True)]
        return None, grad_x, *grads


def apply_blockwise(
    network: nn.Module,
    x: Tensor,
    block_shape: Sequence[int] | int,
    *,
    halo: Sequence[int] | int | None = None,
    blocks_at_once: int | None = None,
    recompute: bool = True,
    exact: bool = True,
    group: Group = ALONE,
) -> Tensor:
    r"""Return ``network(x[None])[0]``, output and gradients, at the memory of a few blocks.

    The work is that of the network on all windows, :math:`((b + 2h) / b)^3` volumes for blocks of :math:`b` voxels
    and a halo of :math:`h` (less at the edges), and backward with ``recompute`` takes 4/3 of the time without.

    Parameters
    ----------
    network
        Takes ``(window, channel, z, y, x)``, gives ``(window, channel', z, y, x)`` of the same spatial shape.
    x
        The volume, real floating point, shape ``(channel, z, y, x)``; z, y, x are multiples of the network's stride.
    block_shape
        The largest block (z, y, x) in voxels, or one number for a cube; rounded up to the stride. Each axis is cut
        evenly: 100 voxels in blocks of at most 64 are two blocks of 50.
    halo
        Voxels (z, y, x) around a block, or one number; rounded up to the stride. None: as far as the network reaches.
    blocks_at_once
        Windows in one batch: more take more memory, and less time if they are small. None: one on a GPU, two on a CPU.
    recompute
        Run each batch again in backward. If not, its activations are kept: more memory, the same answer.
    exact
        Refuse what cannot give the whole volume's answer. False: go on, with a warning.
    group
        The processes over which the windows are dealt, all with the same ``x`` and network, from
        :func:`blockkit.group.join`: each runs its own, and all get the whole volume and the whole gradients.

    Returns
    -------
    Tensor
        Shape ``(channel', z, y, x)``, dtype of the network's output. It can be differentiated once.

    Raises
    ------
    TypeError
        If ``x`` is not a real floating-point tensor, ``network`` is not an ``nn.Module``, or its weights are of a
        precision that it cannot use with that of ``x``.
    ValueError
        If a shape does not fit, or if the answer would differ from the whole volume's: a halo below the network's
        reach, a layer that sees the whole volume, active dropout, a buffer that changes.

    Examples
    --------
    >>> network = bk.ResidualCNN(n_channels=8, n_layers=3)
    >>> x = torch.zeros(2, 24, 20, 24)  # (channel, z, y, x)
    >>> bk.apply_blockwise(network, x, 12).shape
    torch.Size([2, 24, 20, 24])
    """
    volume_shape = guards.check_volume(network, x)
    block = guards.three(block_shape, "block_shape", least=1)
    asked = None if halo is None else guards.three(halo, "halo", least=0)
    used_halo, stride = guards.halo_and_stride(network, x.shape, block, asked, exact=exact)
    blocks = cut_blocks(volume_shape, block, used_halo, stride)
    batches = _batches(blocks, group.share(len(blocks)), blocks_at_once, x.device.type)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    keep_graphs = not recompute and torch.is_grad_enabled() and (x.requires_grad or bool(trained))
    share = Share(group, Blockwise, [block.place for block in blocks])
    job = _Job(network, _numbers(network, trained), batches, keep_graphs, exact, _autocast_now(x.device.type), share)
    node = Blockwise if group.size == 1 else Spread
    y: Tensor = node.apply(job, x, *trained)  # type: ignore[no-untyped-call]
    return y


def _numbers(network: nn.Module, parameters: Sequence[Tensor]) -> dict[str, int]:
    """Map the names of ``parameters`` to their place in the list: one name for each place where a module holds one.

    Two modules may hold the same parameter, so it has two names. But a module that is used twice is named once: with
    two names, its parameter would be exchanged twice, and the second stand-in put back as the original.
    """
    number = {id(parameter): i for i, parameter in enumerate(parameters)}
    held = ((path, *item) for path, module in network.named_modules() for item in module._parameters.items())
    return {f"{path}.{key}".lstrip("."): number[id(value)] for path, key, value in held if id(value) in number}


def _batches(blocks: list[Block], mine: slice, at_once: int | None, device_type: str) -> list[_Batch]:
    """Put the blocks of this process into batches.

    On a CPU, PyTorch's 3D convolution takes up to 20 times as long for a small window alone as for one of two. So
    there are two at once, and a last window that would be alone has company: itself once more, with nothing kept. A
    process without blocks runs a window too, and keeps nothing of it: so it knows what the network gives.
    """
    if at_once is None:
        at_once = windows_at_once(device_type)
    check_count(at_once, "blocks_at_once")
    nothing = (slice(0, 0),) * 3
    company = Block(blocks[-1].window, nothing, nothing)
    own = blocks[mine] or [company]
    if device_type == "cpu" and at_once > 1 and len(blocks) > 1 and len(own) % at_once == 1:
        own = [*own, company]
    return [_Batch(own[i : i + at_once]) for i in range(0, len(own), at_once)]


def windows_at_once(device_type: str) -> int:
    """Return how many windows run together unless asked."""
    return 2 if device_type == "cpu" else 1


def _autocast_now(device_type: str) -> Callable[[], AbstractContextManager[object]]:
    """Return what restores the present autocast state, without the cache: it would mix runs with and without graph."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return partial(torch.autocast, device_type, dtype=dtype, enabled=enabled, cache_enabled=False)


def _add(total: Tensor | None, one: Tensor | None) -> Tensor | None:
    return one if total is None else total if one is None else total + one
