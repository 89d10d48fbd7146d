"""How pictures are laid out in a figure: rows of panels in one grey window, with color bars at the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from blockkit.checks import Shape3
from blockkit.show.pixels import CROSSHAIR_COLOR, NAN_COLOR
from blockkit.show.render import AXES, Part, Volume, is_error, take_part, take_plane

Window = tuple[float, float]
COLORS = {"magnitude": "gray", "real": "gray", "imaginary": "gray", "phase": "twilight", "error": "magma"}
# Of the marks inside a panel: x, y, and which side of the text lies there.
EDGES = ((0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"), (0.02, 0.5, "left", "center"),
         (0.98, 0.5, "right", "center"))  # fmt: skip
BAR_LABELS = {"phase": "phase (rad)", "error": "error (a.u.)"}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: its pixels, how to color them and what is written around it."""

    image: NDArray[np.float64]
    kind: str
    window: Window
    size: tuple[float, float]
    title: str = ""
    row: str = ""
    caption: str = ""
    crosshair: tuple[int, int] | None = None
    marks: tuple[str, ...] = ()
    """What is written inside at the top, bottom, left and right edge."""


def make_panel(name: str, plane: NDArray[Any], part: Part, window: Window, size: tuple[float, float]) -> Panel:
    """Return the panel of one plane; one named "error" shows magnitude, whatever ``part`` is."""
    kind = "error" if is_error(name) else part
    return Panel(take_part(plane, "magnitude" if kind == "error" else part), kind, window, size)


def slice_row(
    volumes: Mapping[str, Volume],
    axis: int,
    position: Shape3,
    part: Part,
    levels: Mapping[str, Window],
    voxel_size: tuple[float, float, float],
    crosshair: bool = False,
) -> list[Panel]:
    """Return one panel for each volume: its slice across ``axis`` at ``position``, in the windows ``levels``."""
    any_volume = next(iter(volumes.values()))
    row, column = (i for i in range(3) if i != axis)
    size = plane_size(any_volume.shape, axis, voxel_size)
    label = f"{AXES[axis]} = {position[axis]}"
    mark = (position[row], position[column]) if crosshair else None
    planes = {name: take_plane(volume, axis, position[axis]) for name, volume in volumes.items()}
    panels = [make_panel(name, plane, part, levels[name], size) for name, plane in planes.items()]
    return [replace(panel, row=label, crosshair=mark) for panel in panels]


def plane_size(shape: Sequence[int], axis: int, voxel_size: Sequence[float]) -> tuple[float, float]:
    """Return height and width in mm of a plane across ``axis``."""
    row, column = (i for i in range(3) if i != axis)
    return shape[row] * voxel_size[row], shape[column] * voxel_size[column]


def with_texts(rows: list[list[Panel]], titles: list[str], notes: Sequence[str] = ()) -> list[list[Panel]]:
    """Write titles above the first row, what is cut at the left of each row, and ``notes`` under the last one."""
    titled = [[replace(panel, row=panel.row if j == 0 else "") for j, panel in enumerate(row)] for row in rows]
    titled[0] = [replace(panel, title=title) for panel, title in zip(titled[0], titles, strict=True)]
    titled[-1] = [
        replace(panel, caption=note) for panel, note in zip(titled[-1], notes or [""] * len(titles), strict=True)
    ]
    return titled


def draw(rows: list[list[Panel]], part: Part, *, width: float | None = None) -> Figure:
    """Return the figure of these rows of panels; ``width`` is that of one column in inches."""
    n_columns = max(len(row) for row in rows)
    width = width or min(2.6, 11.0 / n_columns)
    widest = max(panel.size[1] for row in rows for panel in row)
    heights = [min(max(0.1, *(panel.size[0] / widest for panel in row)), 3.0) * width for row in rows]
    lines = max(panel.caption.count("\n") + 1 if panel.caption else 0 for panel in rows[-1])
    figure = Figure(figsize=(round(n_columns * width + 1.0, 2), round(sum(heights) + 0.4 + 0.18 * lines, 2)))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    grid = figure.subplots(len(rows), n_columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    bars: dict[str, Any] = {}
    for axes_row, row in zip(grid, rows, strict=True):
        for ax, panel in zip(axes_row, row, strict=False):
            bars["error" if panel.kind == "error" else "image"] = _draw_panel(ax, panel)
        for ax in axes_row[len(row) :]:
            ax.set_visible(False)
    for kind, image in sorted(bars.items()):
        bar = figure.colorbar(
            image, ax=grid, fraction=0.05, pad=0.01, aspect=14 * sum(heights), shrink=0.9, panchor=False
        )
        bar.set_label(BAR_LABELS.get("error" if kind == "error" else part, f"{part} (a.u.)"), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.5)
    return figure


def _draw_panel(ax: Axes, panel: Panel) -> Any:
    height, width = panel.image.shape
    aspect = (panel.size[0] / height) / (panel.size[1] / width)
    low, high = panel.window
    image = ax.imshow(panel.image, cmap=colors(panel.kind), vmin=low, vmax=high, aspect=aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(panel.title, fontsize=10, pad=4)
    ax.set_ylabel(panel.row, fontsize=9)
    ax.set_xlabel(panel.caption, fontsize=8)
    if panel.crosshair is not None:
        ax.axhline(panel.crosshair[0], color=_rgb(CROSSHAIR_COLOR), linewidth=0.7, alpha=0.7)
        ax.axvline(panel.crosshair[1], color=_rgb(CROSSHAIR_COLOR), linewidth=0.7, alpha=0.7)
    for text, (x, y, across, up) in zip(panel.marks, EDGES, strict=False):
        outline = [withStroke(linewidth=2, foreground="black")]
        ax.text(
            x, y, text, transform=ax.transAxes, ha=across, va=up, color="white", fontsize=8, path_effects=outline
        )  # fmt: skip
    return image


def colors(kind: str) -> Colormap:
    """Return the color map of a kind of panel; NaN is red."""
    return colormaps[COLORS[kind]].with_extremes(bad=_rgb(NAN_COLOR))


def _rgb(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255
