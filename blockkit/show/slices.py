"""The slice viewer: three planes through several volumes side by side, at one shared position."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ipywidgets as widgets
from matplotlib.figure import Figure

from blockkit.checks import Shape3
from blockkit.show.images import ImageFace
from blockkit.show.pictures import pictures
from blockkit.show.pixels import Bytes
from blockkit.show.render import Part, Volume, check_axis, check_index
from blockkit.show.state import Event
from blockkit.show.view import View

Face: TypeAlias = Literal["auto", "canvas", "image"]
FACES: tuple[Face, ...] = ("auto", "canvas", "image")


class SliceViewer(widgets.VBox):  # type: ignore[misc]
    """Look at two to five volumes side by side: three planes each, one crosshair, one grey window.

    On the canvas: click or drag to move the crosshair, turn the wheel to scroll the slice, drag with Shift for window
    and level; ``keys`` above the pictures lists the rest. The other face has a control for each. Both show magnitude,
    phase, real or imaginary part; a slice, a slab or the whole volume as its largest magnitudes; a line profile; two
    volumes in turn at one place. In a page without a kernel the same picture is there, standing still.

    Parameters
    ----------
    volumes
        Column titles and volumes, (z, y, x), complex or real, torch or numpy, all of one shape. They are not copied.
        With one named ``"reference"``, PSNR, SSIM and NRMSE of each volume are written under its column. One whose name
        starts with ``"error"`` gets its own window and colors, and in its title how much it is magnified.
    voxel_size
        In mm along (z, y, x); ``None`` is isotropic.
    face
        ``"canvas"`` needs anywidget; ``"image"`` needs nothing more; ``"auto"`` is the canvas where anywidget is
        installed.
    orientation
        Three letters, the side of the body where z, where y and where x begins (index 0): H head or F feet, A
        anterior or P posterior, R right or L left, in the order that the axes have. ``"HAR"``, as blockkit's own
        phantom and scans have it: z from head to feet, y from front to back, x from the right of the body to its left.
        The letters stand at the edges of the panels. ``None``: the names of the axes do.

    Examples
    --------
    >>> volumes = {"twice": 2 * scan.reference, "reference": scan.reference}
    >>> viewer = bk.SliceViewer(volumes, voxel_size=scan.voxel_size)
    >>> viewer.position = (8, 6, 4)  # (z, y, x); as the last line of a cell, ``viewer`` shows itself
    """

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        *,
        voxel_size: float | Sequence[float] | None = None,
        face: Face = "auto",
        orientation: str | None = None,
    ) -> None:
        make_face = _face_class(face)
        self._view = View(volumes, voxel_size=voxel_size, orientation=orientation)
        self._face = make_face(self._view, self._handle)
        super().__init__([self._face])
        self._view.scores.start(self._face.paint_texts)

    @property
    def position(self) -> Shape3:
        """Where the crosshair is, (z, y, x) in voxels; set it to move there."""
        return self._view.state.position

    @position.setter
    def position(self, index: Sequence[int]) -> None:
        self._set("position", check_index(index, self._view.state.shape))

    @property
    def part(self) -> Part:
        """What is shown of complex numbers: magnitude, phase, real or imaginary; set it to change."""
        return self._view.state.part

    @part.setter
    def part(self, part: Part) -> None:
        self._set("part", part)

    @property
    def slab(self) -> int:
        """How many voxels deep the largest magnitude is taken: 1 is a slice, 0 the whole volume; set it to change."""
        return self._view.state.slab

    @slab.setter
    def slab(self, slab: int) -> None:
        self._set("slab", slab)

    @property
    def zoom(self) -> float:
        """How much is magnified, 1 to 16, with the crosshair in sight; set it to change."""
        return self._view.state.zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        self._set("zoom", zoom)

    @property
    def window(self) -> tuple[float, float]:
        """Black and white of the images as fractions of the whole window; set it to change."""
        return self._view.state.window

    @window.setter
    def window(self, window: Sequence[float]) -> None:
        self._set("window", window)

    def pixels(self, name: str, axis: str) -> Bytes:
        """Return the visible part of volume ``name`` across ``axis`` now, with the crosshair, as RGB a voxel."""
        scene, state = self._view.scene, self._view.state
        if name not in scene.volumes:
            raise ValueError(f"name is {name!r}, expected one of {', '.join(map(repr, scene.volumes))}.")
        colors: Bytes = scene.palettes[scene.colors(state, name)][scene.marked(state, name, check_axis(axis))]
        return colors

    def figure(self) -> Figure:
        """Return what is shown now as a matplotlib figure, for a saved page or a paper."""
        return self._marked(self._view.figure())

    def save_png(self, path: str | Path) -> None:
        """Write :meth:`figure` to a PNG file of 200 dots an inch."""
        Path(path).write_bytes(self._view.png())

    def describe(self) -> str:
        """Return in sentences what is seen: volumes, shape, position, scores. Screen readers get the same."""
        return self._view.describe()

    def __repr__(self) -> str:
        names, shape = self._view.state.names, self._view.state.shape
        return f"SliceViewer({', '.join(names)}: {' x '.join(map(str, shape))} voxels)"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        figure = self._marked(self._view.figure(wait=False))
        data = {**super()._repr_mimebundle_(**kwargs), **pictures(figure)}
        return data, {"image/png": {"alt": self.describe()}}

    def _marked(self, figure: Figure) -> Figure:
        figure.blockkit_values = getattr(self, "blockkit_values", True)  # type: ignore[attr-defined]
        return figure

    def _set(self, name: str, value: object) -> None:
        self._view.step({"type": "set", "name": name, "value": value})
        self._face.paint()

    def _handle(self, event: Event, act: Callable[[Event], None]) -> None:
        """Let ``act`` answer an event of the face; what goes wrong is undone and shown there, not lost in a log."""
        before = self._view.state
        try:
            act(event)
        except Exception as error:
            self._view.state = before
            self._face.fail(f"{type(error).__name__}: {error}")


def _face_class(face: Face) -> Any:
    if face not in FACES:
        raise ValueError(f"face is {face!r}, expected one of {', '.join(map(repr, FACES))}.")
    if face == "image" or (face == "auto" and find_spec("anywidget") is None):
        return ImageFace
    try:
        from blockkit.show.canvas import CanvasFace
    except ImportError:
        raise ImportError('face="canvas" needs anywidget: pip install anywidget. face="image" works without.') from None
    return CanvasFace
