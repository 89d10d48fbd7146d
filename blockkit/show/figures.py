"""Pictures of volumes: slices, projections, coil maps and the grid of blocks, each as one matplotlib figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from blockkit import metrics as measures
from blockkit.checks import check_shape3
from blockkit.show.render import (
    AXES,
    CROSSHAIR_COLOR,
    NAN_COLOR,
    Part,
    Volume,
    brightest,
    check_axis,
    check_index,
    check_part,
    check_volumes,
    check_voxel_size,
    is_error,
    take_part,
    take_plane,
    windows,
)

Window = tuple[float, float]
COLORS = {"magnitude": "gray", "real": "gray", "imaginary": "gray", "phase": "twilight", "error": "magma"}
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


def show_slices(
    volumes: Mapping[str, Volume],
    *,
    axes: str = "z",
    index: int | Sequence[int] | None = None,
    part: Part = "magnitude",
    voxel_size: float | Sequence[float] | None = None,
    metrics: bool = False,
    crosshair: bool = False,
) -> Figure:
    """Show one slice of each volume side by side, in one shared grey window.

    Parameters
    ----------
    volumes
        Column titles and volumes, (z, y, x), complex or real, torch or numpy. The volume named ``"reference"`` sets
        the window. A name that starts with ``"error"`` gets its own window and the magma colors.
    axes
        The axis to cut across: ``"z"``, ``"y"`` or ``"x"``; several letters, as in ``"zyx"``, give one row each.
    index
        Which slice: one number, or a position (z, y, x); ``None`` is the middle.
    part
        What to show of complex numbers: ``"magnitude"``, ``"phase"`` (rad), ``"real"`` or ``"imaginary"``.
    voxel_size
        In mm along (z, y, x), for the aspect; ``None`` is isotropic.
    metrics
        Write PSNR, SSIM and NRMSE of the whole volume under each column; needs a ``"reference"``.
    crosshair
        Mark the position ``index`` by two lines.
    """
    shape = check_volumes(volumes)
    check_part(part)
    sizes = check_voxel_size(voxel_size)
    cuts = [check_axis(name) for name in axes]
    position = check_index(index, shape, axes)
    notes = captions(volumes) if metrics else {}
    levels = windows(volumes, part)
    rows = []
    for axis in cuts:
        row, column = (i for i in range(3) if i != axis)
        size = shape[row] * sizes[row], shape[column] * sizes[column]
        mark = (position[row], position[column]) if crosshair else None
        label = f"{AXES[axis]} = {position[axis]}"
        planes = {name: take_plane(volume, axis, position[axis]) for name, volume in volumes.items()}
        rows.append([_panel(name, plane, part, levels[name], size, label, mark) for name, plane in planes.items()])
    return _draw(_with_texts(rows, list(volumes), notes), BAR_LABELS.get(part, f"{part} (a.u.)"))


def show_mip(
    volumes: Mapping[str, Volume],
    *,
    axis: str = "y",
    voxel_size: float | Sequence[float] | None = None,
    metrics: bool = False,
) -> Figure:
    """Show the maximum intensity projection of each volume along ``axis``; the parameters are those of show_slices."""
    shape = check_volumes(volumes)
    sizes = check_voxel_size(voxel_size)
    along = check_axis(axis)
    row, column = (i for i in range(3) if i != along)
    size = shape[row] * sizes[row], shape[column] * sizes[column]
    images = {name: _project(volume, along) for name, volume in volumes.items()}
    levels = windows({name: image[None] for name, image in images.items()})
    label = f"maximum along {axis}"
    panels = [_panel(name, image, "magnitude", levels[name], size, label) for name, image in images.items()]
    return _draw(_with_texts([panels], list(volumes), captions(volumes) if metrics else {}), "magnitude (a.u.)")


def show_coils(
    maps: Volume,
    *,
    axis: str = "z",
    index: int | None = None,
    part: Part = "magnitude",
    voxel_size: float | Sequence[float] | None = None,
) -> Figure:
    """Show one slice of each coil's sensitivity, ``maps`` of shape (coil, z, y, x), eight coils a row at most."""
    if not isinstance(maps, Tensor | np.ndarray) or maps.ndim != 4:
        raise ValueError(f"maps has shape {tuple(np.shape(maps))}, expected (coil, z, y, x).")
    check_part(part)
    along, sizes = check_axis(axis), check_voxel_size(voxel_size)
    shape = check_volumes({"coil 0": maps[0]})
    position = check_index(index, shape, axis)
    row, column = (i for i in range(3) if i != along)
    size = shape[row] * sizes[row], shape[column] * sizes[column]
    top = max(brightest(one) for one in maps) or 1.0
    window = {"magnitude": (0.0, top), "phase": (-np.pi, np.pi)}.get(part, (-top, top))
    label = f"{axis} = {position[along]}"
    panels = [_panel("", take_plane(one, along, position[along]), part, window, size, label) for one in maps]
    panels = _with_texts([panels], [f"coil {i}" for i in range(len(panels))], {})[0]
    width = min(8, -(-len(panels) // -(-len(panels) // 8)))
    rows = [panels[i : i + width] for i in range(0, len(panels), width)]
    return _draw(rows, BAR_LABELS.get(part, f"{part} (a.u.)"))


def plot_blocks(
    volume: Volume,
    block_shape: Sequence[int],
    *,
    halo: int | Sequence[int] = 0,
    axis: str = "z",
    index: int | None = None,
    block: Sequence[int] | None = None,
) -> Figure:
    """Draw the grid of blocks over one slice, and one block with the halo that the network sees around it.

    Parameters
    ----------
    volume
        The picture under the grid, (z, y, x).
    block_shape, halo
        In voxels along (z, y, x); one number for ``halo`` is the same along each axis.
    axis, index
        Which slice, as in :func:`show_slices`.
    block
        Which block to mark, counted along (z, y, x); ``None`` is one in the middle.
    """
    shape, blocks, along = check_volumes({"volume": volume}), check_shape3(block_shape, "block_shape"), check_axis(axis)
    halos = (halo,) * 3 if isinstance(halo, int) else tuple(int(h) for h in halo)
    if len(halos) != 3 or min(halos) < 0:
        raise ValueError(f"halo is {halo!r}, expected one number of voxels, or three (z, y, x), none below 0.")
    position = check_index(index, shape, axis)
    row, column = (i for i in range(3) if i != along)
    plane = take_plane(volume, along, position[along])
    size = float(shape[row]), float(shape[column])
    panel = _panel("", plane, "magnitude", windows({"": volume})[""], size, f"{axis} = {position[along]}")
    figure = _draw([[panel]], "magnitude (a.u.)", width=4.2)
    ax = figure.axes[0]
    for lines, i in ((ax.axhline, row), (ax.axvline, column)):
        for edge in range(blocks[i], shape[i], blocks[i]):
            lines(edge - 0.5, color="#56B4E9", linewidth=0.9)
    marked = [n // (2 * b) for n, b in zip(shape, blocks, strict=True)] if block is None else [int(i) for i in block]
    starts = [i * b for i, b in zip(marked, blocks, strict=True)]
    ends = [min(s + b, n) for s, b, n in zip(starts, blocks, shape, strict=True)]
    _box(ax, [starts[i] for i in (row, column)], [ends[i] for i in (row, column)], "#E69F00", "-", "block")
    low = [max(starts[i] - halos[i], 0) for i in (row, column)]
    high = [min(ends[i] + halos[i], shape[i]) for i in (row, column)]
    if max(halos[row], halos[column]):
        _box(ax, low, high, "#D55E00", "--", f"with its halo of {' x '.join(str(halos[i]) for i in (row, column))}")
    ax.set_title(f"{' x '.join(map(str, shape))} voxels in blocks of {' x '.join(map(str, blocks))}", fontsize=10)
    ax.legend(loc="lower right", fontsize=8, framealpha=0.85)
    return figure


def captions(volumes: Mapping[str, Volume]) -> dict[str, str]:
    """Return PSNR, SSIM and NRMSE of each volume against the one named ``"reference"``, as lines to print."""
    if "reference" not in volumes:
        raise ValueError(f'metrics need a volume named "reference", there are only {", ".join(map(repr, volumes))}.')
    reference = volumes["reference"]
    compared = [name for name in volumes if name != "reference" and not is_error(name)]
    return {name: _caption(volumes[name], reference) for name in compared}


def _caption(image: Volume, reference: Volume) -> str:
    try:
        psnr, nrmse = measures.psnr(image, reference), measures.nrmse(image, reference)
        ssim = f"SSIM {measures.ssim(image, reference):.3f}" if max(reference.shape) >= 3 else "SSIM: too small"
    except ValueError as error:
        return str(error).split(".")[0].split(",")[0].replace("reference is all zero", "reference: all zero")
    return f"PSNR {psnr:.1f} dB\n{ssim}\nNRMSE {nrmse:.3f}"


def _project(volume: Volume, axis: int) -> NDArray[np.float64]:
    image = take_part(take_plane(volume, axis, 0), "magnitude")
    for i in range(1, volume.shape[axis]):
        np.maximum(image, take_part(take_plane(volume, axis, i), "magnitude"), out=image)
    return image


def _panel(
    name: str,
    plane: NDArray[Any],
    part: Part,
    window: Window,
    size: tuple[float, float],
    row: str,
    crosshair: tuple[int, int] | None = None,
) -> Panel:
    kind = "error" if is_error(name) else part
    image = take_part(plane, "magnitude" if kind == "error" else part)
    return Panel(image, kind, window, size, row=row, crosshair=crosshair)


def _with_texts(rows: list[list[Panel]], titles: list[str], notes: Mapping[str, str]) -> list[list[Panel]]:
    last = len(rows) - 1
    return [
        [
            Panel(
                **{
                    **vars(panel),
                    "title": titles[j] if i == 0 else "",
                    "row": panel.row if j == 0 else "",
                    "caption": notes.get(titles[j], "") if i == last else "",
                }
            )
            for j, panel in enumerate(row)
        ]
        for i, row in enumerate(rows)
    ]


def _draw(rows: list[list[Panel]], bar_label: str, *, width: float | None = None) -> Figure:
    n_columns = max(len(row) for row in rows)
    width = width or min(2.6, 11.0 / n_columns)
    widest = max(panel.size[1] for row in rows for panel in row)
    heights = [min(max(panel.size[0] / widest for panel in row), 3.0) * width for row in rows]
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
        bar = figure.colorbar(image, ax=grid, fraction=0.05, pad=0.01, aspect=14 * sum(heights), shrink=0.9)
        bar.set_label(BAR_LABELS["error"] if kind == "error" else bar_label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.5)
    return figure


def _draw_panel(ax: Axes, panel: Panel) -> Any:
    height, width = panel.image.shape
    aspect = (panel.size[0] / height) / (panel.size[1] / width)
    low, high = panel.window
    image = ax.imshow(panel.image, cmap=_colors(panel.kind), vmin=low, vmax=high, aspect=aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(panel.title, fontsize=10, pad=4)
    ax.set_ylabel(panel.row, fontsize=9)
    ax.set_xlabel(panel.caption, fontsize=8)
    if panel.crosshair is not None:
        ax.axhline(panel.crosshair[0], color=_rgb(CROSSHAIR_COLOR), linewidth=0.7, alpha=0.7)
        ax.axvline(panel.crosshair[1], color=_rgb(CROSSHAIR_COLOR), linewidth=0.7, alpha=0.7)
    return image


def _colors(kind: str) -> Colormap:
    return colormaps[COLORS[kind]].with_extremes(bad=_rgb(NAN_COLOR))


def _rgb(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _box(ax: Axes, low: list[int], high: list[int], color: str, style: str, label: str) -> None:
    corner = low[1] - 0.5, low[0] - 0.5
    size = high[1] - low[1], high[0] - low[0]
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, lw=2, linestyle=style, label=label, zorder=3))
