"""Ask a copy of a network four questions on each axis, on volumes long in that axis and thinner in the others.

1. Which inner grids are coarser? Their ratio to the volume's grid is the stride.
2. If one plane of the input is NaN, which planes of the output are? The farthest gives the radius.
3. If all padding is NaN, how deep does it come in from the edges? That gives the halo.
4. Is the output of a window, away from its edges, the output of the whole volume? Only then is the answer believed.

What goes from voxel to voxel by way of another axis shows only where the volume is thick enough for the whole way. So
the others are at least 8 voxels, and the questions are asked again on thicker volumes where the answers call for it. In
the end, windows cut along all three axes at once are compared with the whole.
"""

import math
from itertools import product

import torch
from torch import Tensor, nn

from blockkit.blockwise import blame
from blockkit.blockwise.probe import DecisionError, Probe
from blockkit.blockwise.together import AxisReach, Together, equal, largest, positive, round_up
from blockkit.blockwise.trace import growing_axes, total_stride, understood
from blockkit.blockwise.watch import Watch

_LONGEST = 1024
_SIZES = (8, 12, 10, 16, 14, 18, 20, 22, 24, 26, 9, 15, 21, 27, 25, 28, 30, 32, 33, 36, 39, 40, 48, 64)
_AFFORDABLE = 10**7
"""Numbers that all operations of one run may give, together, on volumes larger than the least."""


class _Misfit(ValueError):
    """The sizes tried do not suit the network's stride, or nothing does."""


class Prober:
    """Runs the copy of a network on volumes that are long in one axis."""

    def __init__(self, twin: nn.Module, n_channels: int | None) -> None:
        self.twin, self.watch = twin, Watch(twin)
        self.per_voxel = 1.0
        self.n_channels, self.least = self._find_door(n_channels)
        self.thickness = [self.least] * 3
        if self.per_voxel > 1000 and self._takes(4):
            self.thickness = [4] * 3  # hundreds of channels: it would take minutes

    def axes(self) -> list[AxisReach]:
        """Probe z, y and x."""
        found = [self._probe_axis(axis) for axis in range(3)]
        while (thicker := self._thicker(found)) != self.thickness:
            self.thickness = thicker
            found = [self._probe_axis(axis, found[axis].length) for axis in range(3)]
        Together(found, self.n_channels, self.least, _AFFORDABLE / self.per_voxel).check(self.run)
        return found

    def _thicker(self, found: list[AxisReach]) -> list[int]:
        """Return how thick the volume must be on each axis for any way there and back, as far as it is affordable."""
        longest = max(one.length for one in found)
        affordable = int(math.sqrt(_AFFORDABLE / (8 * longest * self.per_voxel))) // self.least * self.least
        needed = [round_up(2 * one.halo + one.stride, self.least) for one in found]
        return [max(now, min(n, affordable)) for now, n in zip(self.thickness, needed, strict=True)]

    def _find_door(self, n_channels: int | None) -> tuple[int, int]:
        """Find a number of channels and the least size of a cube that the network takes."""
        channels = _likely_channels(self.twin) if n_channels is None else [n_channels]
        problem = misshapen = ""
        for size, count in product(_SIZES, channels):
            if size > 16 and count not in channels[:3]:
                continue
            x = positive((2, count, size, size, size))
            try:
                probe = Probe(self.watch)
                y = probe.run(self.twin, x)
            except DecisionError:
                raise
            except Exception as error:
                problem = problem or f"{self.where()}: {error}"
                continue
            if not isinstance(y, Tensor):
                raise ValueError(f"The network gives a {type(y).__name__}, expected one tensor.")
            if not y.numel():
                raise ValueError(
                    f"The network gives a tensor of shape {tuple(y.shape)}, expected at least one channel."
                )
            if y.ndim == 5 and y.shape[2:] == x.shape[2:] and y.shape[0] == 2:
                given = sum(math.prod(shape) for event in probe.events for shape in event.shapes_out)
                self.per_voxel = max(1.0, given / (2 * size**3))
                return count, size
            if count == channels[0]:
                misshapen = misshapen or _shape_problem(x, y)
            problem = problem or _shape_problem(x, y)
        problem = misshapen or problem
        raise ValueError(f"The network does not run on small volumes, such as (window, channel, 8, 8, 8): {problem}.")

    def _takes(self, size: int) -> bool:
        x = positive((2, self.n_channels, size, size, size))
        try:
            return Probe(self.watch).run(self.twin, x).shape[2:] == x.shape[2:]
        except Exception:
            return False

    def run(self, x: Tensor, **options: object) -> tuple[Probe, Tensor]:
        """Run the network, watched, on a volume that it must take."""
        probe = Probe(self.watch, **options)  # type: ignore[arg-type]
        try:
            y = probe.run(self.twin, x)
        except DecisionError:
            raise
        except Exception as error:
            raise _Misfit(blame.size(self.where(), tuple(x.shape[2:]), self.least, error)) from error
        if y.shape[2:] != x.shape[2:] or y.shape[0] != x.shape[0]:
            raise _Misfit(f"The network does not keep the shape: {_shape_problem(x, y)}.")
        return probe, y

    def where(self) -> str:
        """Return the module that ran last, for a message about an error in it."""
        return self.watch.stack[-1] if self.watch.stack else "the network"

    def _probe_axis(self, axis: int, least_length: int = 0) -> AxisReach:
        """Find the sizes that suit the network, and with them the reach along ``axis``."""
        problem: _Misfit | None = None
        for unit in sorted({math.lcm(self.least, n) for n in (16, 48, 80, 112, 144)}):
            length = max(unit, least_length) if least_length % unit == 0 else unit
            try:
                while length + unit <= max(_LONGEST, 4 * unit):
                    found = _Attempt(self, axis, length, unit).find()
                    if found:
                        return found
                    length *= 2
            except _Misfit as misfit:
                problem = problem or misfit
                continue
            raise ValueError(
                f"Along {'zyx'[axis]}, the network sees farther than {length // 4} voxels, or all of the volume. Block "
                "by block cannot equal the whole volume: use convolutions, pooling and up-sampling of bounded size."
            )
        raise ValueError(str(problem))

    def volume(self, axis: int, length: int, n_windows: int) -> Tensor:
        """Return random volumes, ``length`` along ``axis`` and thin along the others."""
        shape = [n_windows, self.n_channels, *self.thickness]
        shape[2 + axis] = length
        return positive(tuple(shape))


_WHOLES = (0, 0, 1, 1)
"""For each window, which of the volumes it is cut out of."""


class _Attempt:
    """The four questions, on one axis, at one length."""

    def __init__(self, prober: Prober, axis: int, length: int, unit: int) -> None:
        self.prober, self.axis, self.length, self.unit = prober, axis, length, unit
        self.whole_x = prober.volume(axis, length + unit, 4)
        self.whole_x[1] = 3 * (self.whole_x[1] - 1)
        self.whole, self.whole_y = self.prober.run(self.whole_x)
        self.window, self.window_y = self.prober.run(self._windows(1))
        self.grown = growing_axes(self.window.events, self.whole.events)
        self.understood = self.grown is not None and understood(self.window.events, self.grown)

    def find(self) -> AxisReach | None:
        """Return the reach, or None if the volume is too short for it."""
        stride = self._stride()
        radius = self._radius(stride)
        if radius is None:
            return None
        depth = self._depth(stride) if self.understood else radius
        if depth is None:
            return None
        halos = {depth, max(depth, radius)}
        if not self.understood:  # something inside may look farther than what comes out
            halos |= {radius + n * stride for n in (1, 2, 4, 8)}
        for halo in sorted({round_up(halo, stride) for halo in halos}):
            if 2 * halo + stride > self.length:
                return None
            if self._window_equals_whole(halo, stride):
                return AxisReach(max(radius, depth), stride, halo, self._layers(), self.length)
        raise _Misfit(blame.position(self.window.events, self.whole.events, "zyx"[self.axis]))

    def _windows(self, stride: int) -> Tensor:
        """Cut windows out of a positive and a signed whole: at its start, one stride later, and at its end."""
        wholes = [self.whole_x[i] for i in _WHOLES]
        pairs = zip(wholes, self._starts(stride), strict=True)
        return torch.stack([whole.narrow(1 + self.axis, start, self.length) for whole, start in pairs])

    def _starts(self, stride: int) -> tuple[int, ...]:
        return 0, stride, stride, self.unit

    def _stride(self) -> int:
        if self.grown is None:
            raise _Misfit(
                "The network takes other steps for a longer volume: what it does depends on the volume's size. "
                "Block by block cannot equal the whole volume."
            )
        stride = total_stride(self.window.events, self.whole.events, self.unit)
        if self.unit % stride:
            raise _Misfit(blame.position(self.window.events, self.whole.events, "zyx"[self.axis]))
        return stride

    def _radius(self, stride: int) -> int | None:
        """Mark one plane after the other, for all phases of the stride, and look how far the mark has come."""
        center, farthest = self.length // 2 // stride * stride, 0
        at_once = max(2, 2**17 // math.prod(self.whole_x.shape[2:]))
        for first in range(center, center + stride, at_once):
            planes = [min(first + i, center + stride - 1) for i in range(min(at_once, max(2, stride)))]
            x = self.prober.volume(self.axis, self.length, len(planes))
            touched = self._touched(x, planes, math.nan)
            if not self.understood:  # something may have stopped the NaN: change the plane to other numbers, too
                for value in (1e3, 0.1, 0.0, -1e3):
                    touched |= self._touched(x, planes, value)
            for plane, line in zip(planes, touched, strict=True):
                positions = line.nonzero().flatten().tolist() or [plane]
                if positions[0] == 0 or positions[-1] == self.length - 1:
                    self._blame_spread(x, plane)
                    return None
                farthest = max(farthest, plane - positions[0], positions[-1] - plane)
        return farthest

    def _touched(self, x: Tensor, planes: list[int], value: float) -> Tensor:
        """Set one plane of each volume to ``value``: where along the axis does the output change?"""
        marked = x.clone()
        for volume, plane in zip(marked, planes, strict=True):
            volume.select(1 + self.axis, plane).fill_(value)
        y = self.prober.run(marked, nan=math.isnan(value))[1]
        if not math.isnan(value):
            before = self.prober.run(x)[1]
            y = torch.where((y - before).abs() > 1e-12 * before.abs().max(), math.nan, 0.0)
        return self._lines(y)

    def _depth(self, stride: int) -> int | None:
        """Make all padding NaN, and look how deep it comes in."""
        x = self.prober.volume(self.axis, self.length, 3)
        touched = self._lines(self.prober.run(x, grown=self.grown)[1]).any(0)
        middle = self.length // 2
        if touched[middle - stride : middle + stride].any():
            return None
        left, right = touched[:middle].nonzero(), touched[middle:].nonzero()
        depth = int(left[-1]) + 1 if len(left) else 0
        return max(depth, self.length - middle - int(right[0])) if len(right) else depth

    def _lines(self, y: Tensor) -> Tensor:
        """Reduce to ``(window, position along the axis)``: is there a NaN?"""
        return y.isnan().movedim(2 + self.axis, 1).flatten(2).any(2)

    def _blame_spread(self, x: Tensor, plane: int) -> None:
        """Refuse by name if one operation brought the mark from inside to an end of the volume at once."""
        x.select(2 + self.axis, plane).fill_(math.nan)
        probe = Probe(self.prober.watch, nan=True)
        probe.inspect = finder = blame.SpreadFinder(self.window.events, self.whole.events)
        probe.run(self.prober.twin, x)
        if finder.culprit:
            raise ValueError(blame.spread(finder.culprit, "zyx"[self.axis]))

    def _window_equals_whole(self, halo: int, stride: int) -> bool:
        """Compare windows with the whole, away from the windows' own edges."""
        _, parts = self.prober.run(self._windows(stride))
        for part, number, start in zip(parts, _WHOLES, self._starts(stride), strict=True):
            first = halo if start else 0
            last = self.length - (halo if start != self.unit else 0)
            mine = part.narrow(1 + self.axis, first, last - first)
            theirs = self.whole_y[number].narrow(1 + self.axis, start + first, last - first)
            if not equal(mine, theirs, self.whole.tolerance * largest(self.whole_y[number])):
                return False
        return True

    def _layers(self) -> list[str]:
        """Return one line for each windowed operation."""
        return [f"{event.layer}: {event.text}" for event in self.whole.events if event.text]


def _shape_problem(x: Tensor, y: Tensor) -> str:
    return (
        f"it gives shape {tuple(y.shape)} for {tuple(x.shape)}, expected (window, channel', z, y, x) of the same "
        "spatial shape. Pad its convolutions, and undo its strides"
    )


def _likely_channels(network: nn.Module) -> list[int]:
    """Guess what the first layer takes; before it there may be a space-to-depth."""
    taken = [vars(module).get("in_channels") for module in network.modules()]
    first = [n for n in taken if isinstance(n, int) and n > 0]
    before = [n // factor for n in first[:1] for factor in (1, 8, 4, 2, 27, 64) if n % factor == 0]
    return list(dict.fromkeys((*before, 2, 1, *first[1:], 3, 4, 8, 16)))
