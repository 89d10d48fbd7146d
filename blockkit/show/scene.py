"""The volumes of a viewer and how a state shows them: real numbers, windows and panels, with numpy alone."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blockkit.show.panels import colors
from blockkit.show.pixels import N_LEVELS, Bytes, crop, mark, palette, quantize
from blockkit.show.render import (
    Part,
    Planes3,
    Volume,
    all_brightest,
    check_volumes,
    is_error,
    project,
    project_whole,
    take_part,
    take_plane,
    windows,
)
from blockkit.show.state import ViewState, box, depth, in_plane

Key: TypeAlias = tuple[Any, ...]
Window: TypeAlias = tuple[float, float]

KINDS = ("magnitude", "phase", "error")


class Scene:
    """The volumes behind a viewer, what is computed once for them, and the panels of a state.

    Parameters
    ----------
    volumes
        Names and volumes, (z, y, x), complex or real, torch or numpy, all of one shape. They are not copied.
    """

    def __init__(self, volumes: Mapping[str, Volume]) -> None:
        self.shape = check_volumes(volumes)
        self.volumes = dict(volumes)
        self.palettes: dict[str, Bytes] = {kind: palette(colors(kind)(np.linspace(0, 1, N_LEVELS))) for kind in KINDS}
        self._tops = all_brightest(self.volumes)
        self._images: dict[tuple[str, int], tuple[Key, NDArray[Any]]] = {}
        self._panels: dict[tuple[str, int], tuple[Key, Bytes]] = {}
        self._projections: dict[str, Planes3] = {}

    def kind(self, state: ViewState, name: str) -> str:
        """Return what ``name`` shows: the part of the state, or the magnitude of an error map or of a projection."""
        if is_error(name):
            return "error"
        return state.part if state.slab == 1 else "magnitude"

    def colors(self, state: ViewState, name: str) -> str:
        """Return the palette of ``name``: grey, named "magnitude", but for phase and error maps."""
        kind = self.kind(state, name)
        return kind if kind in KINDS else "magnitude"

    def window(self, state: ViewState, name: str) -> Window:
        """Return the values of ``name`` that are black and white; a phase has the whole turn."""
        kind = self.kind(state, name)
        part: Part = "magnitude" if state.slab != 1 else state.part
        low, high = windows(self._tops, part)[name]
        if kind == "phase":
            return low, high
        start, end = state.error_window if kind == "error" else state.window
        return low + (high - low) * start, low + (high - low) * end

    def magnification(self, state: ViewState, name: str) -> float:
        """Return how much brighter an error of one size is than an image of this size; 1 where there is no image."""
        whole = windows(self._tops)
        images = [window for other, window in whole.items() if not is_error(other)]
        if not is_error(name) or not images:
            return 1.0
        start, end = state.error_window
        return (images[0][1] - images[0][0]) / ((whole[name][1] - whole[name][0]) * (end - start))

    def image(self, state: ViewState, name: str, axis: int) -> NDArray[Any]:
        """Return the real numbers that ``name`` shows across ``axis``, (row, column): a slice or a projection."""
        first, last = depth(state, axis)
        kind = self.kind(state, name)
        key = (first, last, kind)
        held = self._images.get((name, axis))
        if held is None or held[0] != key:
            held = key, self._take(name, axis, first, last, kind)
            self._images[name, axis] = held
        return held[1]

    def _take(self, name: str, axis: int, first: int, last: int, kind: str) -> NDArray[Any]:
        volume = self.volumes[name]
        if last - first == 1:
            part: Part = "magnitude" if kind == "error" else kind  # type: ignore[assignment]
            return take_part(take_plane(volume, axis, first), part)
        if last - first < self.shape[axis]:
            return project(volume, axis, first, last)
        if name not in self._projections:
            self._projections[name] = project_whole(volume)
        return self._projections[name][axis]

    def key(self, state: ViewState, name: str, axis: int) -> Key:
        """Return what the panel of ``name`` across ``axis`` depends on: the same key means the same bytes."""
        return (name, axis, *depth(state, axis), self.kind(state, name), self.window(state, name))

    def indices(self, state: ViewState, name: str, axis: int) -> Bytes:
        """Return the whole panel without its crosshair, one byte a voxel: see :mod:`blockkit.show.pixels`."""
        key = self.key(state, name, axis)
        held = self._panels.get((name, axis))
        if held is None or held[0] != key:
            held = key, quantize(self.image(state, name, axis), self.window(state, name))
            self._panels[name, axis] = held
        return held[1]

    def marked(self, state: ViewState, name: str, axis: int) -> Bytes:
        """Return the visible part of the panel with its crosshair, one byte a voxel."""
        row, column = in_plane(axis)
        panel = mark(self.indices(state, name, axis), state.position[row], state.position[column])
        return crop(panel, box(state, axis))

    def value(self, state: ViewState, name: str, position: tuple[int, int, int], axis: int) -> str:
        """Return in words what ``name`` shows at a voxel of a plane across ``axis``: a complex one with its phase."""
        row, column = in_plane(axis)
        shown = f"{float(self.image(state, name, axis)[position[row], position[column]]):.4g}"
        one = take_plane(self.volumes[name], 0, position[0])[position[1], position[2]]
        if self.kind(state, name) == "magnitude" and state.slab == 1 and np.iscomplexobj(one):
            return f"{shown} ∠ {float(np.angle(one)):.2f}"
        return shown

    def line(self, state: ViewState, name: str) -> NDArray[Any]:
        """Return the numbers of ``name`` along the profile's axis, through the crosshair: (voxel,)."""
        axis = max(state.profile, 0)
        plane = 0 if axis else 1
        row, _column = in_plane(plane)
        image = take_plane(self.volumes[name], plane, state.position[plane])
        across = state.position[in_plane(plane)[1] if axis == row else row]
        values = image[:, across] if axis == row else image[across]
        kind = "magnitude" if is_error(name) else state.part
        return take_part(values, kind)
