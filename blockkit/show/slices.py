"""The slice viewer: three planes through several volumes side by side, at one shared position."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure

from blockkit.checks import Shape3
from blockkit.show.figures import captions
from blockkit.show.fingerprint import MIME, fingerprint
from blockkit.show.panels import colors, draw, plane_size, slice_row, with_texts
from blockkit.show.render import (
    AXES,
    PARTS,
    Part,
    Pixels,
    Volume,
    all_brightest,
    check_index,
    check_volumes,
    check_voxel_size,
    encode_png,
    is_error,
    render,
    take_part,
    take_plane,
    windows,
)

WIDTH_ALL, WIDTH_MOST = 1080, 280
PIXEL_CLASS = "blockkit-voxels"
STYLE = f"<style>.{PIXEL_CLASS} {{ image-rendering: pixelated; margin: 1px; object-fit: fill; }}</style>"


class SliceViewer(widgets.VBox):  # type: ignore[misc]
    """Look at two to five volumes side by side: three planes each, one crosshair, one grey window.

    Sliders move the crosshair in all volumes at once; the arrow keys on a chosen slider move it by one
    voxel. In a page without a kernel the same picture is there, standing still.

    Parameters
    ----------
    volumes
        Column titles and volumes, (z, y, x), complex or real, torch or numpy, all of one shape. They are not copied.
        With one named ``"reference"``, PSNR, SSIM and NRMSE of each volume are written under its column. One whose name
        starts with ``"error"`` gets its own window and colors.
    voxel_size
        In mm along (z, y, x); ``None`` is isotropic.
    """

    def __init__(self, volumes: Mapping[str, Volume], *, voxel_size: float | Sequence[float] | None = None) -> None:
        self._shape = check_volumes(volumes)
        self._voxel_size = check_voxel_size(voxel_size)
        self._volumes = dict(volumes)
        self._notes = captions(volumes) if "reference" in volumes else {}
        self._tops = all_brightest(self._volumes)
        self._levels: dict[str, tuple[float, float]] = windows(self._tops)
        self._held = False
        self._sliders = [self._slider(axis) for axis in range(3)]
        self._part = widgets.Dropdown(options=PARTS, description="show", layout=_wide(200), style=_narrow(40))
        self._window = widgets.IntRangeSlider(
            value=(0, 100), min=0, max=100, description="window %", layout=_wide(300), style=_narrow(70)
        )
        self._faces = {(axis, name): self._face(axis) for axis in range(3) for name in self._volumes}
        for control in (*self._sliders, self._window):
            control.observe(self._redraw, names="value")
        self._part.observe(self._change_part, names="value")
        super().__init__([widgets.HBox([*self._sliders]), widgets.HBox([self._part, self._window]), *self._rows()])
        self._redraw()

    @property
    def position(self) -> Shape3:
        """Where the crosshair is, (z, y, x) in voxels; set it to move there."""
        z, y, x = (int(slider.value) for slider in self._sliders)
        return z, y, x

    @position.setter
    def position(self, index: Sequence[int]) -> None:
        wanted = check_index(index, self._shape)
        self._held = True
        for slider, i in zip(self._sliders, wanted, strict=True):
            slider.value = i
        self._held = False
        self._redraw()

    @property
    def part(self) -> Part:
        """What is shown of complex numbers: magnitude, phase, real or imaginary; set it to change."""
        shown: Part = self._part.value
        return shown

    @part.setter
    def part(self, part: Part) -> None:
        self._part.value = part

    def pixels(self, name: str, axis: str) -> Pixels:
        """Return what the column ``name`` shows across ``axis`` now, as RGB, one pixel a voxel."""
        return self._render(AXES.index(axis), name)

    def figure(self) -> Figure:
        """Return what is shown now as a matplotlib figure, for a saved page or a paper."""
        rows = [
            slice_row(self._volumes, axis, self.position, self.part, self._levels, self._voxel_size, True)
            for axis in range(3)
        ]
        figure = draw(with_texts(rows, list(self._volumes), self._notes), self.part)
        figure.blockkit_values = getattr(self, "blockkit_values", True)  # type: ignore[attr-defined]
        return figure

    def __repr__(self) -> str:
        return f"SliceViewer({', '.join(self._volumes)}: {' x '.join(map(str, self._shape))} voxels)"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        figure = self.figure()
        picture = print_figure(figure, fmt="png", base64=True)  # type: ignore[no-untyped-call]
        return {**super()._repr_mimebundle_(**kwargs), "image/png": picture, MIME: fingerprint(figure)}

    def _change_part(self, _change: object) -> None:
        self._levels = windows(self._tops, self.part)
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        if not self._held:
            for (axis, name), face in self._faces.items():
                face.value = encode_png(self._render(axis, name))

    def _render(self, axis: int, name: str) -> Pixels:
        kind = "error" if is_error(name) else self.part
        plane = take_plane(self._volumes[name], axis, self.position[axis])
        row, column = (i for i in range(3) if i != axis)
        return render(
            take_part(plane, "magnitude" if kind == "error" else self.part),
            self._narrowed(name),
            np.rint(colors(kind)(np.arange(256))[:, :3] * 255).astype(np.uint8),
            crosshair=(self.position[row], self.position[column]),
        )

    def _narrowed(self, name: str) -> tuple[float, float]:
        low, high = self._levels[name]
        if is_error(name) or self.part == "phase":
            return low, high
        start, end = self._window.value
        return low + (high - low) * start / 100, low + (high - low) * end / 100

    def _slider(self, axis: int) -> Any:
        last = self._shape[axis] - 1
        value = self._shape[axis] // 2
        return widgets.IntSlider(
            value, 0, last, description=AXES[axis], disabled=last == 0, layout=_wide(260), style=_narrow(20)
        )

    def _face(self, axis: int) -> Any:
        planes = [plane_size(self._shape, a, self._voxel_size) for a in range(3)]
        scale = self._column / max(width for _, width in planes)
        height, width = (max(8, round(scale * side)) for side in planes[axis])
        face = widgets.Image(format="png", layout=widgets.Layout(width=f"{width}px", height=f"{height}px"))
        face.add_class(PIXEL_CLASS)
        return face

    @property
    def _column(self) -> int:
        return min(WIDTH_MOST, WIDTH_ALL // len(self._volumes))

    def _rows(self) -> list[Any]:
        titles = [f"<b>{escape(name)}</b>" for name in self._volumes]
        notes = [escape(self._notes.get(name, "")).replace("\n", "<br>") for name in self._volumes]
        faces = [[self._faces[axis, name] for name in self._volumes] for axis in range(3)]
        texts = [
            [widgets.HTML(f'<div style="text-align:center;line-height:1.4">{t}</div>') for t in row]
            for row in (titles, notes)
        ]
        rows = [texts[0], *faces, texts[1]]
        return [widgets.HTML(STYLE), *(widgets.HBox([self._cell(one) for one in row]) for row in rows)]

    def _cell(self, content: Any) -> Any:
        layout = widgets.Layout(width=f"{self._column + 8}px", align_items="center", overflow="hidden")
        return widgets.VBox([content], layout=layout)


def _wide(pixels: int) -> Any:
    return widgets.Layout(width=f"{pixels}px")


def _narrow(pixels: int) -> dict[str, str]:
    return {"description_width": f"{pixels}px"}
