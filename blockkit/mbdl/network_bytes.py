"""What a regularizer takes for each voxel: by formula for ResidualCNN, from a few small traces for any other."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from blockkit.blockwise.memory import predict
from blockkit.blockwise.reach import reach
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3, check_count
from blockkit.mbdl.networks import ResidualCNN, n_inputs
from blockkit.mbdl.optimizer import KernelOptimizer

PRECISIONS = ("single", "half", "double")
SIDES = (32, 48)  # voxels on a side of the two volumes that are traced


@dataclass(frozen=True)
class NetworkBytes:
    """What a network sees and takes. Bytes are for each voxel of all windows that run together.

    Attributes
    ----------
    n_inputs
        Channels that it takes: 2, or 4 with the gradient of the data term.
    halo, stride
        As :func:`~blockkit.blockwise.reach.reach` finds them, in voxels (z, y, x).
    weights, state
        Bytes of its weights and buffers, and of the optimizer's state for them.
    plain
        Peak of forward without a graph, input and output included.
    forward
        Peak of forward with a graph, input and output included.
    kept
        What the graph keeps after that, without the output.
    backward
        Peak of backward beyond ``kept`` and the gradient of the output.
    casts
        Bytes in all, not for a voxel, that a graph keeps of the weights in half precision.
    """

    n_inputs: int
    halo: Shape3
    stride: Shape3
    weights: int
    state: int
    plain: float
    forward: float
    kept: float
    backward: float
    casts: int = 0


def residual_cnn_bytes(n_channels: int, n_layers: int, precision: str = "single") -> NetworkBytes:
    """Return what a ``ResidualCNN(n_channels, n_layers)`` takes.

    Each hidden layer is kept twice, before and after its activation; beside that, forward holds its input twice (the
    given one, and the one multiplied by the gain), and backward starts with the gradient of the last hidden layer.

    Parameters
    ----------
    n_channels, n_layers
        As in :class:`~blockkit.mbdl.networks.ResidualCNN`.
    precision
        ``"single"``, ``"double"``, or ``"half"``: inside ``torch.autocast("cpu", dtype=torch.bfloat16)``.

    Raises
    ------
    ValueError
        If a number is too small, or there is no such precision.
    """
    check_precision(precision)
    check_count(n_channels, "n_channels")
    check_count(n_layers, "n_layers", 2)
    kernels = 27 * n_channels * (4 + n_channels * (n_layers - 2))
    others = n_channels * (n_layers - 1) + 2
    real = 8 if precision == "double" else 4
    image, channels = 2 * real, (2 if precision == "half" else real) * n_channels
    hidden = 2 * channels * (n_layers - 1)
    weights, state = real * (kernels + others), real * (kernels + 2 * others)
    halo, stride = (n_layers,) * 3, (1, 1, 1)
    if precision == "half":
        plain = max(3 * image, 2.5 * image + channels, 2 * image + 2 * channels)
        forward, kept, backward = 3 * image + hidden, image / 2 + hidden, max(image, image / 2 + channels)
        return NetworkBytes(2, halo, stride, weights, state, plain, forward, kept, backward, casts=2 * kernels)
    plain = max(3 * image + channels, 2 * image + 2 * channels)
    return NetworkBytes(
        2, halo, stride, weights, state, plain, forward=4 * image + hidden, kept=image + hidden,
        backward=image + channels,
    )  # fmt: skip


def traced_bytes(network: nn.Module, precision: str = "single") -> NetworkBytes:
    """Return what any network takes, from traces of two small volumes; nothing is computed.

    Parameters
    ----------
    network
        Takes and gives ``(window, 2, z, y, x)``; four channels in, if it has a true attribute ``sees_gradient``.
    precision
        As in :func:`residual_cnn_bytes`.

    Raises
    ------
    TypeError, ValueError
        If the network is no ``nn.Module``, cannot be run in exact blocks, or there is no such precision.
    """
    check_precision(precision)
    seen = reach(network, n_channels=n_inputs(network))
    network = copy.deepcopy(network).double() if precision == "double" else network
    shapes = [tuple(round_up(side, s) for s in seen.stride) for side in SIDES]
    small, large = (_of_volume(network, shape, precision) for shape in shapes)
    n_small, n_large = (z * y * x for z, y, x in shapes)
    slopes = {key: (large[key] - small[key]) / (n_large - n_small) for key in small}
    kernels = sum(p.nbytes for p in network.parameters() if p.requires_grad and KernelOptimizer.is_kernel(p))
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    casts = max(0, round(small["kept"] - slopes["kept"] * n_small)) if precision == "half" else 0
    return NetworkBytes(
        n_inputs(network), seen.halo, seen.stride, weights, 2 * trained - kernels,
        slopes["plain"], slopes["forward"], slopes["kept"], max(0.0, slopes["backward"]), casts,
    )  # fmt: skip


def network_bytes(network: nn.Module, precision: str = "single") -> NetworkBytes:
    """Return :func:`residual_cnn_bytes` for a plain :class:`ResidualCNN`, and else :func:`traced_bytes`."""
    plain = type(network) is ResidualCNN and network.downsample == 1 and not network.sees_gradient
    if plain and isinstance(network, ResidualCNN):
        return residual_cnn_bytes(network.n_channels, network.n_layers, precision)
    return traced_bytes(network, precision)


def check_precision(precision: str) -> None:
    """Raise unless there is such a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}.")


def computing_in(precision: str, *, cached: bool = True) -> AbstractContextManager[object]:
    """Return the context in which a run has this precision: autocast for ``"half"``."""
    if precision != "half":
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached)


def _of_volume(network: nn.Module, shape: tuple[int, ...], precision: str) -> dict[str, int]:
    """Trace one volume as a batch of one window: bytes."""
    real = torch.float64 if precision == "double" else torch.float32
    trained = [p for p in network.parameters() if p.requires_grad]

    def run(n_graphs: int, *, grad: bool = True, backward: bool = False) -> None:
        leaf = torch.zeros((), dtype=real, requires_grad=grad)
        outputs = []
        for _ in range(n_graphs):
            with computing_in(precision, cached=False), torch.set_grad_enabled(grad):
                outputs.append(network(leaf.expand(1, n_inputs(network), *shape).clone()))  # the input is no leaf
        if backward:
            torch.autograd.grad(outputs, [leaf, *trained], [torch.zeros_like(outputs[0])], allow_unused=True)

    plain, one, two = (predict(partial(run, n, grad=g)).bytes for n, g in ((1, False), (1, True), (2, True)))
    output = 2 * real.itemsize * math.prod(shape)
    kept = two - one - output
    return {
        "plain": plain,
        "forward": one,
        "kept": kept,
        "backward": predict(partial(run, 1, backward=True)).bytes - kept - 2 * output,
    }
