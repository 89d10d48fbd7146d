"""What a watched run leaves behind: its operations in order, and what comparing two runs tells about a network."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

VIEWS = {
    "alias", "clone", "complex", "contiguous", "detach", "expand", "imag", "lift_fresh", "native_channel_shuffle",
    "permute", "pixel_shuffle", "pixel_unshuffle", "polar", "real", "reshape", "squeeze", "t", "transpose", "unsqueeze",
    "view", "view_as_complex", "view_as_real", "_conj", "_reshape_alias", "_to_copy", "_unsafe_view",
}  # fmt: skip
CUTS = {"cat", "narrow", "select", "slice", "split", "split_with_sizes", "stack", "unbind"}
_MIXERS = {
    "addmm", "amax", "amin", "bmm", "linalg_vector_norm", "mean", "mm", "native_batch_norm", "native_layer_norm",
    "sum", "var", "var_mean", "_log_softmax", "_native_batch_norm_legit_no_training", "_prelu_kernel", "_safe_softmax",
    "_softmax",
}  # fmt: skip
_CARRIED = {"all", "any", "argmax", "argmin", "copy_", "embedding", "isclose", "masked_fill", "masked_fill_"}
_DRAWS = {"bernoulli_", "empty_like", "new_empty"}


@dataclass(frozen=True)
class Event:
    """One operation as it passed by."""

    layer: str
    """Path and type of the module that it runs in, such as ``encoder.0 (Conv3d)``."""
    call: str
    """The torch function that the network called, such as ``interpolate``."""
    op: str
    """The operation that PyTorch ran for it."""
    pointwise: bool
    constant: bool
    """It gave numbers that do not come from the input."""
    windowed: bool
    """It sees a window of bounded size, and the probe knows its edges."""
    shapes_in: tuple[torch.Size, ...]
    shapes_out: tuple[torch.Size, ...]
    text: str
    """For windowed operations, their geometry."""
    options: dict[str, Any]
    """Options of the call that matter: ``mode``, ``align_corners``; the axes that an indexing is about."""


def growing_axes(short: list[Event], long: list[Event]) -> list[tuple[int, ...]] | None:
    """Compare two runs: which axes of each operation's first input grow with the volume. None: the runs differ."""
    if [event.op for event in short] != [event.op for event in long]:
        return None
    return [
        growing(a.shapes_in[0], b.shapes_in[0]) if a.shapes_in and b.shapes_in else ()
        for a, b in zip(short, long, strict=True)
    ]


def total_stride(short: list[Event], long: list[Event], growth: int) -> int:
    """Return the least number of voxels by which the volume must move for every inner grid to move by whole voxels."""
    steps = {1}
    for a, b in zip(short, long, strict=True):
        for shape_a, shape_b in zip(a.shapes_out, b.shapes_out, strict=True):
            steps |= {Fraction(shape_b[i] - shape_a[i], growth).denominator for i in growing(shape_a, shape_b)}
    return math.lcm(*steps)


def understood(events: list[Event], grown: list[tuple[int, ...]]) -> bool:
    """Say whether every operation is one whose edges are known, so that NaN edges tell the whole truth."""
    for event, axes in zip(events, grown, strict=True):
        cut = event.op in CUTS and any(_changed(event, axis) for axis in axes)
        known = (
            event.pointwise
            or event.constant
            or event.windowed
            or event.op in VIEWS | CUTS | _MIXERS | _CARRIED | _DRAWS
            or (event.op == "index" and not set(axes) & set(event.options["axes"]))
        )
        if cut or not known:
            return False
    return True


def _changed(event: Event, axis: int) -> bool:
    """Say whether a cut changes the size of ``axis``, or takes the axis away."""
    size = event.shapes_in[0][axis]
    return any(len(shape) != len(event.shapes_in[0]) or shape[axis] != size for shape in event.shapes_out)


def growing(a: torch.Size, b: torch.Size) -> tuple[int, ...]:
    """Return the axes on which two shapes of the same operation differ."""
    return tuple(i for i, (m, n) in enumerate(zip(a, b, strict=True)) if m != n) if len(a) == len(b) else ()
