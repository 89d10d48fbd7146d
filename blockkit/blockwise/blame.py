"""Say which layer makes a network see the whole volume, and what to use instead."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.blockwise.trace import VIEWS, Event, growing

_NEVER = "Block by block can never equal the whole volume with it."
_ADVICE = {
    "batch_norm": "takes its statistics over the batch and the volume while it trains. Call network.eval(), which "
    "makes it a fixed scale and offset, or leave it out",
    "norm": "takes statistics over space. Use none, or LayerNorm over the channels alone, or BatchNorm in eval mode",
    "pool": "pools the whole volume. Use pooling with a fixed kernel, such as AvgPool3d(2), or leave it out",
    "attention": "attends to the whole volume. Use convolutions, or attention in windows of fixed size",
    "align_corners": "resamples with align_corners=True: its sampling points depend on the volume's size. Use "
    "align_corners=False",
    "circular": "pads with the far side of the volume. Use padding_mode 'zeros', 'reflect' or 'replicate'",
    "moves": "moves voxels by a distance that depends on the volume's size, or around its edge. Leave it out",
    "fft": "transforms the whole volume. Use convolutions of bounded size",
    "scan": "runs along the whole volume. Use convolutions of bounded size",
    "reduce": "sees the whole volume. Use convolutions or pooling of bounded size, or compute that number beforehand "
    "from the whole volume and pass it in as an input channel",
    "chance": "draws random numbers by the place in the window. Leave it out, or pass the noise in as input channels",
    "place": "makes values that depend on the place in the window or on its size. Pass coordinates of the whole volume "
    "in as input channels instead",
}
_MOVES = {"flip", "roll", "rot90", "fliplr", "flipud"}
_SCANS = {"cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "lstm", "gru", "rnn_tanh"}
_PLACES = {"arange", "linspace", "logspace", "meshgrid", "eye", "affine_grid", "grid_sample", "tril", "triu"}
_CHANCE = {"rand", "randn", "rand_like", "randn_like", "normal_", "uniform_", "randint", "randperm", "normal"}


class SpreadFinder:
    """Finds the first operation that carries a mark from inside the volume to one of its ends, or out of its grid."""

    def __init__(self, short: list[Event], long: list[Event]) -> None:
        self.short, self.long = short, long
        self.culprit: Event | None = None

    def __call__(self, index: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Look at the marks before and after operation number ``index``."""
        if index >= len(self.short):
            return
        event, longer = self.short[index], self.long[index]
        if self.culprit or event.op in VIEWS or event.windowed:
            return
        before = {
            _spread(value, a, b)
            for value, a, b in zip(inputs, event.shapes_in, longer.shapes_in, strict=False)
            if growing(a, b)
        }
        after = {
            _spread(value, a, b) for value, a, b in zip(outputs, event.shapes_out, longer.shapes_out, strict=False)
        }
        if "inside" in before and "everywhere" not in before and "everywhere" in after:
            self.culprit = event


def spread(event: Event, axis: str) -> str:
    """Return the message for an operation that sees the whole volume."""
    words = f"{event.call} {event.op} {event.layer}".lower()
    order = (
        ("adaptive", "pool"), ("batch_norm", "batch_norm"), ("batchnorm", "batch_norm"), ("instance", "norm"),
        ("group", "norm"), ("norm", "norm"), ("var", "norm"), ("std", "norm"), ("attention", "attention"),
        ("bmm", "attention"), ("matmul", "attention"), ("softmax", "attention"), ("fft", "fft"),
    )  # fmt: skip
    kind = next((kind for word, kind in order if word in words), "reduce")
    if "instance" in words or "group" in words:
        kind = "norm"
    if event.op in _SCANS or event.call in _SCANS:
        kind = "scan"
    return f"{_name(event)} {_ADVICE[kind]}. {_NEVER} (Seen along {axis}.)"


def position(short: list[Event], long: list[Event], axis: str) -> str:
    """Return the message for a network whose answer depends on where in the volume a window is."""
    for event, longer in zip(short, long, strict=False):
        kind = _kind_of_place(event, longer)
        if kind:
            return f"{_name(event)} {_ADVICE[kind]}. {_NEVER} (Seen along {axis}.)"
    return (
        f"The network's answer along {axis} depends on the place in the volume, not only on what is around it: a "
        f"window gives other values than the whole volume. {_NEVER} Look for coordinates, position codes, a map "
        "of fixed size, or a resampling whose factor is not the same for every size."
    )


def size(where: str, shape: tuple[int, ...], least: int, error: Exception) -> str:
    """Return the message for a network that does not run on another size."""
    return (
        f"{where} runs on ({least}, {least}, {least}) voxels but not on {shape}: {error}. A network for blocks must "
        "take volumes of any size, at least in multiples of its stride: is there a map of fixed size in it?"
    )


def decision(layer: str, call: str) -> str:
    """Return the message for a network that looks at numbers to decide what to compute."""
    return (
        f"{layer}, in its call of {call}, takes a decision on the data: each block would decide for itself. Decide "
        "beforehand, or voxel by voxel with torch.where; or leave the decision out."
    )


def together() -> str:
    """Return the message for a network that blocks suit along each axis alone, but not along all at once."""
    return (
        "Cut along all axes at once, the network gives other values than on the whole volume. Look for what depends on "
        "the number of windows, on whether two sizes are equal, or on the volume's numbers as a whole. " + _NEVER
    )


def _kind_of_place(event: Event, longer: Event) -> str | None:
    names = {event.op, event.call}
    if event.options.get("align_corners"):
        return "align_corners"
    if "adaptive" in event.call:
        return "pool"
    if event.options.get("mode") == "circular":
        return "circular"
    for words, kind in ((_MOVES, "moves"), (_SCANS, "scan"), (_CHANCE, "chance"), (_PLACES, "place")):
        if names & words:
            return kind
    grows = [
        any(map(growing, *shapes))
        for shapes in ((event.shapes_in, longer.shapes_in), (event.shapes_out, longer.shapes_out))
    ]
    if event.windowed and grows == [False, True]:
        return "place"
    return "fft" if "fft" in event.op else None


def _name(event: Event) -> str:
    return f"{event.layer}, in its call of {event.call},"


def _spread(touched: Tensor, short: torch.Size, long: torch.Size) -> str:
    """Say how far a mark is along the axes that grow: nowhere, inside, or everywhere (at an end, or no axis)."""
    if not bool(touched.any()):
        return "nowhere"
    axes = growing(short, long)
    lines = [touched.movedim(axis, 0).reshape(touched.shape[axis], -1).any(1) for axis in axes]
    if lines and not any(bool(line[0] or line[-1]) for line in lines):
        return "inside"
    return "everywhere"
