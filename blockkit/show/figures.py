"""Pictures of volumes: slices, projections, coil maps and the grid of blocks, each as one matplotlib figure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from blockkit import metrics as measures
from blockkit.checks import check_shape3
from blockkit.show.panels import draw, make_panel, plane_size, slice_row, with_texts
from blockkit.show.render import (
    Part,
    Volume,
    all_brightest,
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

    Examples
    --------
    >>> figure = bk.show.show_slices({"image": scan.reference}, axes="zyx", voxel_size=scan.voxel_size)
    >>> figure.axes[0].get_title()
    'image'
    """
    shape = check_volumes(volumes)
    check_part(part)
    sizes = check_voxel_size(voxel_size)
    if not axes:
        raise ValueError("axes is empty, expected one or several of 'z', 'y' and 'x', such as 'zyx'.")
    cuts = [check_axis(name) for name in axes]
    position = check_index(index, shape, axes)
    levels = windows(all_brightest(volumes), part)
    rows = [slice_row(volumes, axis, position, part, levels, sizes, crosshair) for axis in cuts]
    return draw(with_texts(rows, list(volumes), _notes(volumes, metrics=metrics)), part)


def show_mip(
    volumes: Mapping[str, Volume],
    *,
    axis: str = "y",
    voxel_size: float | Sequence[float] | None = None,
    metrics: bool = False,
) -> Figure:
    """Show the maximum intensity projection of each volume along ``axis``; the parameters are those of show_slices.

    Examples
    --------
    >>> figure = bk.show.show_mip({"image": scan.reference}, axis="y")
    """
    shape = check_volumes(volumes)
    sizes = check_voxel_size(voxel_size)
    along = check_axis(axis)
    size = plane_size(shape, along, sizes)
    images = {name: _project(volume, along) for name, volume in volumes.items()}
    levels = windows({name: brightest(image[None]) for name, image in images.items()})
    panels = [make_panel(name, image, "magnitude", levels[name], size) for name, image in images.items()]
    panels = [replace(panel, row=f"maximum along {axis}") for panel in panels]
    return draw(with_texts([panels], list(volumes), _notes(volumes, metrics=metrics)), "magnitude")


def show_coils(
    maps: Volume,
    *,
    axis: str = "z",
    index: int | None = None,
    part: Part = "magnitude",
    voxel_size: float | Sequence[float] | None = None,
) -> Figure:
    """Show one slice of each coil's sensitivity, ``maps`` of shape (coil, z, y, x), eight coils a row at most.

    Examples
    --------
    >>> figure = bk.show.show_coils(scan.maps, axis="z")
    """
    if not isinstance(maps, Tensor | np.ndarray) or maps.ndim != 4:
        raise ValueError(f"maps has shape {tuple(np.shape(maps))}, expected (coil, z, y, x).")
    check_part(part)
    along, sizes = check_axis(axis), check_voxel_size(voxel_size)
    shape = check_volumes({"coil 0": maps[0]})
    position = check_index(index, shape, axis)
    top = max(brightest(one) for one in maps) or 1.0
    window = {"magnitude": (0.0, top), "phase": (-np.pi, np.pi)}.get(part, (-top, top))
    coils = {f"coil {i}": one for i, one in enumerate(maps)}
    panels = slice_row(coils, along, position, part, dict.fromkeys(coils, window), sizes)
    panels = with_texts([panels], list(coils))[0]
    width = -(-len(panels) // -(-len(panels) // 8))
    return draw([panels[i : i + width] for i in range(0, len(panels), width)], part)


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

    Examples
    --------
    >>> figure = bk.show.plot_blocks(scan.reference, (8, 8, 8), halo=2)
    """
    shape, blocks, along = check_volumes({"volume": volume}), check_shape3(block_shape, "block_shape"), check_axis(axis)
    halos = (halo,) * 3 if isinstance(halo, int) else tuple(int(h) for h in halo)
    if len(halos) != 3 or min(halos) < 0:
        raise ValueError(f"halo is {halo!r}, expected one number of voxels, or three (z, y, x), none below 0.")
    position = check_index(index, shape, axis)
    row, column = (i for i in range(3) if i != along)
    panels = slice_row({"": volume}, along, position, "magnitude", windows({"": brightest(volume)}), (1.0, 1.0, 1.0))
    figure = draw([panels], "magnitude", width=4.2)
    ax = figure.axes[0]
    for lines, i in ((ax.axhline, row), (ax.axvline, column)):
        for edge in range(blocks[i], shape[i], blocks[i]):
            lines(edge - 0.5, color="#56B4E9", linewidth=0.9)
    marked = _check_block(block, [-(-n // b) for n, b in zip(shape, blocks, strict=True)])
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


def _check_block(block: Sequence[int] | None, n_blocks: list[int]) -> list[int]:
    chosen = [n // 2 for n in n_blocks] if block is None else [int(i) for i in block]
    if len(chosen) != 3 or not all(0 <= i < n for i, n in zip(chosen, n_blocks, strict=False)):
        raise ValueError(
            f"block is {block!r}, expected (z, y, x) in a grid of {' x '.join(map(str, n_blocks))} blocks."
        )
    return chosen


def captions(volumes: Mapping[str, Volume]) -> dict[str, str]:
    """Return PSNR, SSIM and NRMSE of each volume against the one named ``"reference"``, as lines to print."""
    if "reference" not in volumes:
        raise ValueError(f'metrics need a volume named "reference", there are only {", ".join(map(repr, volumes))}.')
    reference = volumes["reference"]
    compared = [name for name in volumes if name != "reference" and not is_error(name)]
    return {name: _caption(volumes[name], reference) for name in compared}


def _notes(volumes: Mapping[str, Volume], *, metrics: bool) -> list[str]:
    said = captions(volumes) if metrics else {}
    return [said.get(name, "") for name in volumes]


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


def _box(ax: Axes, low: list[int], high: list[int], color: str, style: str, label: str) -> None:
    corner = low[1] - 0.5, low[0] - 0.5
    size = high[1] - low[1], high[0] - low[0]
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, lw=2, linestyle=style, label=label, zorder=3))
