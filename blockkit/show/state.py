"""What a viewer shows, as one value, and what an event makes of it: pure functions, no widget and no volume in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from blockkit.checks import Shape3
from blockkit.show.pixels import Box
from blockkit.show.render import PARTS, Part, check_part, is_error

Event: TypeAlias = Mapping[str, Any]
Fractions: TypeAlias = tuple[float, float]

PLANES = ("axial", "coronal", "sagittal")
FULL: Fractions = (0.0, 1.0)
HIGHEST = 2.0
NARROWEST = 0.01
MOST_ZOOM = 16.0
ZOOM_STEP = 1.5
FAST = 10


KEYS = {
    "arrows": "move the crosshair",
    "Page Up, Page Down": "previous, next slice (with Shift ten)",
    "Home, End": "first, last slice",
    "+ and -": "zoom",
    "b": "blink with another volume",
    "m": "maximum of the whole volume, and back",
    "p": "line profile along z, y, x, none",
    "r": "reset",
}


@dataclass(frozen=True)
class ViewState:
    """Everything that decides what a viewer shows, but for the volumes themselves.

    Parameters
    ----------
    names, shape
        The titles of the columns, and the (z, y, x) that all volumes share.
    position
        Where the crosshair is, (z, y, x) in voxels.
    first
        The first visible voxel along (z, y, x): above 0 only where zoomed in.
    axis, column
        The plane that the keys act on: cut across axis 0 to 2 (z, y, x), in which column.
    part
        What is shown of complex numbers: magnitude, phase, real or imaginary.
    window, error_window
        Black and white as fractions of the whole window, for images and for error maps.
    slab
        How many voxels deep the maximum is taken: 1 is a slice, 0 the whole volume.
    zoom
        1 shows all, 2 half of each axis.
    partner, blinking
        The volume to blink with, and whether it stands in the active column now.
    profile
        The axis along which the profile runs; -1 is none.
    """

    names: tuple[str, ...]
    shape: Shape3
    position: Shape3
    first: Shape3 = (0, 0, 0)
    axis: int = 0
    column: int = 0
    part: Part = "magnitude"
    window: Fractions = FULL
    error_window: Fractions = FULL
    slab: int = 1
    zoom: float = 1.0
    partner: str = ""
    blinking: bool = False
    profile: int = -1


def initial(names: Sequence[str], shape: Shape3) -> ViewState:
    """Return the state at the start: the middle of the volume, all of it, in its whole window."""
    partner = "reference" if "reference" in names else names[-1]
    z, y, x = (n // 2 for n in shape)
    return ViewState(tuple(names), shape, (z, y, x), partner=partner)


def step(state: ViewState, event: Event) -> ViewState:
    """Return the state after one event, such as ``{"type": "scroll", "axis": 0, "column": 1, "steps": -1}``.

    ============  ===========================================================================================
    ``move``      ``row``, ``col``: the crosshair to this voxel of the plane, clipped to the volume
    ``scroll``    ``steps``: the crosshair along the axis that the plane is cut across
    ``key``       ``key``, as the browser names it, ``shift`` (ten at once), ``times``: see :data:`KEYS`
    ``drag``      ``dx``, ``dy``: window and level, in fractions of the panel's size
    ``zoom``      ``steps``: how often to magnify by 1.5, negative to go back
    ``set``       ``name``, ``value``: one field of the state, as a control shows it
    ``reset``     everything as it was at the start
    ============  ===========================================================================================

    ``axis`` and ``column``, where an event has them, make that plane the active one.
    """
    kind = event.get("type")
    if kind not in _STEPS:
        raise ValueError(f"event has type {kind!r}, expected one of {', '.join(_STEPS)}.")
    return _STEPS[kind](_aim(state, event), event)


def move_to(state: ViewState, position: Sequence[int]) -> ViewState:
    """Return the state with the crosshair at ``position``, clipped to the volume; a zoomed view follows it."""
    z, y, x = (min(max(int(i), 0), n - 1) for i, n in zip(position, state.shape, strict=True))
    return _follow(replace(state, position=(z, y, x)))


def in_plane(axis: int) -> tuple[int, int]:
    """Return the two axes of a plane cut across ``axis``: that of its rows, that of its columns."""
    row, column = (i for i in range(3) if i != axis)
    return row, column


def box(state: ViewState, axis: int) -> Box:
    """Return the visible rows and columns of a plane across ``axis``: first, after the last, of each."""
    row, column = in_plane(axis)
    ends = [first + _n_visible(n, state.zoom) for first, n in zip(state.first, state.shape, strict=True)]
    return state.first[row], ends[row], state.first[column], ends[column]


def depth(state: ViewState, axis: int) -> tuple[int, int]:
    """Return the first voxel and the one after the last along ``axis`` that a panel across it shows."""
    n, at = state.shape[axis], state.position[axis]
    if state.slab == 0:
        return 0, n
    first = max(at - (state.slab - 1) // 2, 0)
    return first, min(at + state.slab // 2 + 1, n)


def other_volume(state: ViewState) -> str:
    """Return the volume that the active column blinks with: the partner, or another where it is the partner itself."""
    own = state.names[state.column]
    others = [name for name in (state.partner, *state.names) if name != own]
    return others[0] if others else own


def shown_names(state: ViewState) -> list[str]:
    """Return the volume that stands in each column now."""
    names = list(state.names)
    if state.blinking:
        names[state.column] = other_volume(state)
    return names


def _aim(state: ViewState, event: Event) -> ViewState:
    axis = min(max(int(event.get("axis", state.axis)), 0), 2)
    column = min(max(int(event.get("column", state.column)), 0), len(state.names) - 1)
    return replace(state, axis=axis, column=column, blinking=state.blinking and column == state.column)


def _move(state: ViewState, event: Event) -> ViewState:
    position = list(state.position)
    row, column = in_plane(state.axis)
    position[row], position[column] = int(event["row"]), int(event["col"])
    return move_to(state, position)


def _shift(state: ViewState, axis: int, steps: int) -> ViewState:
    return move_to(state, [i + steps * (axis == a) for a, i in enumerate(state.position)])


def _scroll(state: ViewState, event: Event) -> ViewState:
    return _shift(state, state.axis, int(event["steps"]))


def _drag(state: ViewState, event: Event) -> ViewState:
    which = "error_window" if is_error(state.names[state.column]) else "window"
    low, high = state.error_window if which == "error_window" else state.window
    level = (low + high) / 2 + float(event["dy"])
    half = max((high - low) * 2.0 ** (2 * float(event["dx"])), NARROWEST) / 2
    return _with_window(state, which, (level - half, level + half))


def _with_window(state: ViewState, which: str, window: Sequence[float]) -> ViewState:
    low, high = (min(max(float(value), 0.0), HIGHEST) for value in window)
    low = min(low, HIGHEST - NARROWEST)
    fractions = (low, max(high, low + NARROWEST))
    return replace(state, error_window=fractions) if which == "error_window" else replace(state, window=fractions)


def _zoom(state: ViewState, event: Event) -> ViewState:
    return _zoom_to(state, state.zoom * ZOOM_STEP ** float(event["steps"]))


def _zoom_to(state: ViewState, zoom: float) -> ViewState:
    zoom = min(max(float(zoom), 1.0), MOST_ZOOM)
    firsts = []
    for first, at, n in zip(state.first, state.position, state.shape, strict=True):
        before, after = _n_visible(n, state.zoom), _n_visible(n, zoom)
        firsts.append(at - round((at - first + 0.5) / before * after - 0.5))
    return _follow(replace(state, zoom=zoom, first=(firsts[0], firsts[1], firsts[2])))


def _follow(state: ViewState) -> ViewState:
    firsts = []
    for first, at, n in zip(state.first, state.position, state.shape, strict=True):
        visible = _n_visible(n, state.zoom)
        firsts.append(min(max(first, at - visible + 1, 0), at, n - visible))
    return replace(state, first=(firsts[0], firsts[1], firsts[2]))


def _n_visible(n: int, zoom: float) -> int:
    return max(1, round(n / zoom))


def _blink(state: ViewState) -> ViewState:
    return replace(state, blinking=not state.blinking and other_volume(state) != state.names[state.column])


def _key(state: ViewState, event: Event) -> ViewState:
    key, many = str(event["key"]), FAST if event.get("shift") else 1
    steps = int(event.get("times", 1)) * many
    row, column = in_plane(state.axis)
    moves = {"ArrowUp": (row, -1), "ArrowDown": (row, 1), "ArrowLeft": (column, -1), "ArrowRight": (column, 1)}
    moves |= {"PageUp": (state.axis, -1), "PageDown": (state.axis, 1)}
    moves |= {"Home": (state.axis, -max(state.shape)), "End": (state.axis, max(state.shape))}
    if key in moves:
        axis, sign = moves[key]
        return _shift(state, axis, sign * steps)
    if key in ("+", "=", "-"):
        return _zoom(state, {"steps": -1 if key == "-" else 1})
    if key == "b":
        return _blink(state)
    if key == "m":
        return replace(state, slab=1 if state.slab == 0 else 0)
    if key == "p":
        return replace(state, profile=(state.profile + 2) % 4 - 1)
    return _reset(state, event) if key == "r" else state


def _set(state: ViewState, event: Event) -> ViewState:
    name, value = event.get("name"), event.get("value")
    if name == "position":
        return move_to(state, value)  # type: ignore[arg-type]
    if name in ("window", "error_window"):
        return _with_window(state, name, value)  # type: ignore[arg-type]
    if name == "zoom":
        return _zoom_to(state, value)  # type: ignore[arg-type]
    if name == "part":
        check_part(str(value))
        return replace(state, part=next(part for part in PARTS if part == value))
    if name == "slab":
        return replace(state, slab=min(max(int(value), 0), max(state.shape)))  # type: ignore[arg-type]
    if name == "profile":
        return replace(state, profile=min(max(int(value), -1), 2))  # type: ignore[arg-type]
    if name == "blinking":
        return state if bool(value) == state.blinking else _blink(state)
    if name == "partner" and value in state.names:
        return replace(state, partner=str(value))
    raise ValueError(f"cannot set {name!r} to {value!r}.")


def _reset(state: ViewState, _event: Event) -> ViewState:
    fresh = initial(state.names, state.shape)
    return replace(fresh, axis=state.axis, column=state.column, partner=state.partner)


_STEPS = {
    "move": _move,
    "scroll": _scroll,
    "key": _key,
    "drag": _drag,
    "zoom": _zoom,
    "set": _set,
    "reset": _reset,
}
