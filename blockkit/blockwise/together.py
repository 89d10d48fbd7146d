"""Believe what was found on each axis alone only if blocks cut along all three at once equal the whole volume."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockkit.blockwise import blame
from blockkit.blockwise.probe import Probe


@dataclass
class AxisReach:
    """The answers on one axis, in voxels, and the layers that widen them."""

    radius: int
    stride: int
    halo: int
    layers: list[str]
    length: int
    """Of the volume that gave the answers."""


class Together:
    """The last question: do windows that are cut along all three axes at once equal the whole volume?

    The volume is a cube and the windows are not; the volume is alone and the windows are two; the numbers have both
    signs, and in the first window a mean of the other sign. If the volume would have more than ``n_voxels``, fewer axes
    are cut.
    """

    def __init__(self, found: list[AxisReach], n_channels: int, least: int, n_voxels: float) -> None:
        self.found, self.n_channels, self.least = found, n_channels, least
        axes = sorted(range(3), key=lambda axis: found[axis].halo)
        for n_cut in (3, 2, 1):
            self.window, self.shape = self._sizes(axes[:n_cut])
            if math.prod(self.shape) < n_voxels:
                break

    def _sizes(self, cut: list[int]) -> tuple[list[int], list[int]]:
        """Return the shapes of the windows and of the volume."""
        window, steps = [self.least] * 3, [self.least] * 3
        for i, axis in enumerate(cut):
            one = self.found[axis]
            step = steps[axis] = math.lcm(self.least, one.stride)
            window[axis] = round_up(one.halo + one.stride, step) + i * step
        longest = round_up(max(window) + 1, math.lcm(*steps))
        return window, [longest if axis in cut else window[axis] for axis in range(3)]

    def check(self, run: Callable[[Tensor], tuple[Probe, Tensor]]) -> None:
        """Raise if they differ."""
        x = 3 * (positive((1, self.n_channels, *self.shape)) - 1) - 1
        outside = torch.ones(self.shape, dtype=torch.bool, device="cpu")
        outside[tuple(slice(0, n) for n in self.window)] = False
        x[..., outside] += 2.5 / float(outside.double().mean())
        places = [
            [slice(0, w) for w in self.window],
            [slice(n - w, n) for n, w in zip(self.shape, self.window, strict=True)],
        ]
        probe, whole = run(x)
        _, parts = run(torch.cat([x[:, :, *place] for place in places]))
        halos = [one.halo if n > w else 0 for one, n, w in zip(self.found, self.shape, self.window, strict=True)]
        for i, (part, place) in enumerate(zip(parts, places, strict=True)):
            kept = [slice(h, w) if i else slice(0, w - h) for h, w in zip(halos, self.window, strict=True)]
            if not equal(part[:, *kept], whole[0][:, *place][:, *kept], probe.tolerance * largest(whole)):
                raise ValueError(blame.together())


def equal(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Say whether two tensors are equal up to ``tolerance``, with NaN in the same places."""
    same = (mine == theirs) | (mine.isnan() & theirs.isnan()) | ((mine - theirs).abs() <= tolerance)
    return bool(same.all())


def largest(y: Tensor) -> float:
    """Return the largest absolute value that is finite."""
    return float(y.abs().nan_to_num(0.0, 0.0, 0.0).max())


def positive(shape: tuple[int, ...]) -> Tensor:
    """Return random numbers between 0.5 and 1.5, always the same."""
    return torch.rand(shape, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(0)) + 0.5


def round_up(n: int, stride: int) -> int:
    """Return the least multiple of ``stride`` that is not below ``n``."""
    return -(-n // stride) * stride
