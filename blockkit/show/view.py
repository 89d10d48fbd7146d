"""A viewer without its widgets: volumes, state, words and the figure. Both faces show what stands here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from blockkit.checks import Shape3
from blockkit.show.panels import Panel, draw, plane_size, with_texts
from blockkit.show.pixels import crop
from blockkit.show.profile import profile_svg
from blockkit.show.render import AXES, PARTS, Volume, check_voxel_size, is_error
from blockkit.show.scene import Scene
from blockkit.show.scores import Scores
from blockkit.show.state import (
    KEYS,
    PLANES,
    Event,
    ViewState,
    box,
    depth,
    in_plane,
    initial,
    move_to,
    shown_names,
    step,
)
from blockkit.show.texts import (
    check_orientation,
    column_title,
    describe,
    edge_marks,
    magnified,
    plane_title,
    score_html,
)

DPI = 200
FIELDS = ("position", "axis", "column", "part", "window", "error_window", "slab", "zoom", "partner", "profile")


class View:
    """The volumes of a viewer and its state; the parameters are those of :class:`SliceViewer`."""

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        *,
        voxel_size: float | Sequence[float] | None = None,
        orientation: str | None = None,
    ) -> None:
        self.scene = Scene(volumes)
        self.voxel_size = check_voxel_size(voxel_size)
        self.orientation = check_orientation(orientation)
        self.scores = Scores(self.scene)
        self.state = initial(list(self.scene.volumes), self.scene.shape)

    def step(self, event: Event) -> ViewState:
        """Let an event change the state, and return it."""
        self.state = step(self.state, event)
        return self.state

    def setup(self) -> dict[str, Any]:
        """Return what stays the same while one looks: names, sizes in mm, letters at the edges, help."""
        sizes = [plane_size(self.state.shape, axis, self.voxel_size) for axis in range(3)]
        return {
            "names": list(self.state.names),
            "errors": [is_error(name) for name in self.state.names],
            "shape": list(self.state.shape),
            "sizes": [list(size) for size in sizes],
            "widest": max(width for _, width in sizes),
            "marks": [edge_marks(self.orientation, axis) for axis in range(3)],
            "planes": list(PLANES),
            "parts": list(PARTS),
            "kinds": list(self.scene.palettes),
            "help": "; ".join(
                [
                    "click and drag: move the crosshair",
                    "wheel: slice",
                    "Shift and drag: window and level",
                    "Ctrl and wheel: zoom",
                    *(f"{key}: {what}" for key, what in KEYS.items()),
                ]
            ),
        }

    def words(self) -> dict[str, Any]:
        """Return what the state says besides its pictures, ready for JSON."""
        state = self.state
        names = shown_names(state)
        return {
            **{field: getattr(state, field) for field in FIELDS},
            "boxes": [list(box(state, axis)) for axis in range(3)],
            "shown": [state.names.index(name) for name in names],
            "titles": [column_title(self.scene, state, column) for column in range(len(names))],
            "planes": [plane_title(state, axis) for axis in range(3)],
            "svg": self.profile(),
            **self.values(state.position, state.axis),
        }

    def values(self, position: Shape3, axis: int) -> dict[str, Any]:
        """Return the value of each column at a voxel of a plane across ``axis``, and where that is."""
        names = shown_names(self.state)
        at = ", ".join(f"{name} = {i}" for name, i in zip(AXES, position, strict=True))
        return {
            "values": [self.scene.value(self.state, name, position, axis) for name in names],
            "at": f"values at {at}",
        }

    def probe(self, event: Event) -> dict[str, Any]:
        """Return :meth:`values` under the pointer: ``axis``, ``row`` and ``col`` of the event."""
        axis = int(event["axis"])
        row, column = in_plane(axis)
        position = list(self.state.position)
        position[row], position[column] = int(event["row"]), int(event["col"])
        return self.values(move_to(self.state, position).position, axis)

    def tables(self) -> list[str]:
        """Return the scores under each column as HTML, "" where there are none."""
        shown = self.scores.shown(self.state)
        tables = [self.scores.table(name, shown.get(name, "")) for name in self.state.names]
        return [score_html(rows, PLANES[self.state.axis]) for rows in tables]

    def describe(self) -> str:
        """Return in sentences what is seen."""
        return describe(self.scene, self.scores, self.state, self.voxel_size)

    def profile(self) -> str:
        """Return the line profile as SVG, "" where none is wanted."""
        state = self.state
        if state.profile < 0:
            return ""
        lines = {name: self.scene.line(state, name) for name in state.names}
        across = [f"{AXES[axis]} = {state.position[axis]}" for axis in range(3) if axis != state.profile]
        xlabel = f"{AXES[state.profile]} (voxels) at {', '.join(across)}"
        return profile_svg(lines, position=state.position[state.profile], xlabel=xlabel, ylabel=state.part)

    def figure(self, *, wait: bool = True) -> Figure:
        """Return what is shown now as a matplotlib figure, with the scores of the whole volumes.

        Where the volumes are large, these take seconds; without ``wait`` they are left out of such a figure.
        """
        names = shown_names(self.state)
        rows = [[self._panel(name, axis) for name in names] for axis in range(3)]
        notes = self.scores.whole() if wait or not self.scores.large else {}
        titles = [magnified(self.scene, self.state, name) for name in names]
        rows = with_texts(rows, titles, [notes.get(name, "") for name in names])
        return draw(rows, self.state.part if self.state.slab == 1 else "magnitude")

    def png(self) -> bytes:
        """Return :meth:`figure` as a PNG file."""
        file = BytesIO()
        self.figure().savefig(file, format="png", dpi=DPI)
        return file.getvalue()

    def _panel(self, name: str, axis: int) -> Panel:
        state, scene = self.state, self.scene
        row, column = in_plane(axis)
        visible = box(state, axis)
        image = crop(scene.image(state, name, axis), visible)
        whole = plane_size(state.shape, axis, self.voxel_size)
        size = whole[0] * image.shape[0] / state.shape[row], whole[1] * image.shape[1] / state.shape[column]
        panel = Panel(image, scene.kind(state, name), scene.window(state, name), size)
        first, last = depth(state, axis)
        label = f"{AXES[axis]} = {first}" if last - first == 1 else f"maximum of {AXES[axis]} = {first} to {last - 1}"
        mark = state.position[row] - visible[0], state.position[column] - visible[2]
        marks = edge_marks(self.orientation, axis) if self.orientation else []
        return replace(panel, row=label, crosshair=mark, marks=tuple(marks))
