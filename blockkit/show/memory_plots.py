"""Pictures of memory: bytes by part against a budget, blocks in the volume, peak and work over the block's size."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator

from blockkit.blockwise.blocks import cut_axis
from blockkit.checks import Shape3
from blockkit.show.plots import LIMIT_COLOR, PALETTE

GIB = 2**30
PART_COLORS = {
    "windows": "#0072B2",
    "images": "#56B4E9",
    "maps": "#009E73",
    "kspace": "#E69F00",
    "nufft": "#CC79A7",
    "weights": "#888888",
    "scratch": "#BBBBBB",
}
PART_NAMES = {
    "windows": "activations",
    "images": "images of the unrolls",
    "maps": "coil maps",
    "kspace": "k-space",
    "nufft": "NUFFT",
    "weights": "weights, optimizer",
    "scratch": "scratch of kernels",
}
BLOCK_COLOR, HALO_COLOR = "#E69F00", "#D55E00"
SMALL = 9
FAR = 2.5  # times the highest bar: from there on the budget is above the axes
HEADROOM = 1.3  # of the axis over the highest bar that is shown whole, or the budget


def draw_parts(ax: Axes, bars: Mapping[str, Mapping[str, int]], budget: float) -> None:
    """Draw bytes by part as stacked bars, the last one whole and the others cut off where they leave the axes.

    Parameters
    ----------
    ax
        Empty axes.
    bars
        Labels under the bars, and bytes by part.
    budget
        In bytes: a line.
    """
    totals = [sum(parts.values()) for parts in bars.values()]
    highest = max(totals[-1], min(max(totals), FAR * totals[-1]))
    near = budget <= FAR * highest
    top = HEADROOM * (max(budget, totals[-1]) if near else highest) / GIB
    names = [name for name in PART_COLORS if any(parts.get(name) for parts in bars.values())]
    base = np.zeros(len(bars))
    for name in names:
        heights = np.array([parts.get(name, 0) / GIB for parts in bars.values()])
        ax.bar(range(len(bars)), heights, bottom=base, width=0.58, color=PART_COLORS[name], label=PART_NAMES[name])
        base = base + heights
    for i, total in enumerate(totals):
        beyond = total / GIB > top
        if beyond:
            _cut_off(ax, i, top)
        place = 0.945 * top if beyond else total / GIB + 0.012 * top
        note = f"{gib(total)} GiB" + (" ↑" if beyond else "")
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.2}
        ax.text(i, place, note, ha="center", va="bottom", fontsize=SMALL + 1, weight="bold", bbox=style)
    ax.axhline(budget / GIB, color=LIMIT_COLOR, linestyle="--", linewidth=1.5)
    ax.text(
        len(bars) - 0.52, budget / GIB + 0.008 * top if near else top,
        f"budget {gib(budget)} GiB" + ("" if near else " ↑"),
        color=LIMIT_COLOR, fontsize=SMALL, ha="right", va="bottom" if near else "top",
    )  # fmt: skip
    ax.set_xlim(-0.5, len(bars) - 0.5)
    ax.set_ylim(0, top)
    ax.set_xticks(range(len(bars)), list(bars), fontsize=SMALL + 1)
    ax.set_ylabel("peak memory (GiB)", fontsize=SMALL + 1)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], fontsize=SMALL - 1, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2, handlelength=1.0,
    )  # fmt: skip
    _dress(ax)


def draw_blocks(ax: Axes, image_shape: Shape3, block_shape: Shape3, halo: Shape3, stride: Shape3 = (1, 1, 1)) -> None:
    """Sketch the volume cut into blocks, with one block and its window where they can be seen.

    Parameters
    ----------
    ax
        Empty axes.
    image_shape, block_shape, halo, stride
        In voxels (z, y, x), as in :func:`~blockkit.blockwise.blocks.cut_blocks`.
    """
    shape = tuple(-(-n // s) * s for n, s in zip(image_shape, stride, strict=True))
    cuts = [cut_axis(*sizes) for sizes in zip(shape, block_shape, halo, stride, strict=True)]
    edges = [[0, *(place.stop for _, _, place in cut)] for cut in cuts]
    for face in _faces([0, 0, 0], list(shape)):
        ax.add_patch(Polygon(face, facecolor="#EAF3FA", edgecolor="#33607F", linewidth=1.1))
    lines = [_loop(axis, edge, shape) for axis in range(3) for edge in edges[axis][1:-1]]
    ax.add_collection(LineCollection(lines, colors="#56B4E9", linewidths=0.7))
    chosen = [cuts[0][-1], cuts[1][-1], cuts[2][len(cuts[2]) // 2]]  # at the top and in front
    window = [c[0] for c in chosen]
    block = [c[2] for c in chosen]
    for face in _faces([s.start for s in window], [s.stop for s in window]):
        ax.add_patch(Polygon(face, facecolor=HALO_COLOR, alpha=0.28, edgecolor=HALO_COLOR, linewidth=1.0))
    for face in _faces([s.start for s in block], [s.stop for s in block]):
        ax.add_patch(Polygon(face, facecolor=BLOCK_COLOR, alpha=0.85, edgecolor="#8A5F00", linewidth=1.0))
    corners = _project(np.array([[z, y, x] for z in (0, shape[0]) for y in (0, shape[1]) for x in (0, shape[2])]))
    (left, low), (right, high) = corners.min(axis=0), corners.max(axis=0)
    pad = 0.06 * (right - left)
    ax.set_xlim(left - pad, right + pad)
    ax.set_ylim(low - pad, high + pad)
    ax.set_aspect("equal")
    ax.set_axis_off()
    n_blocks = prod(map(len, cuts))
    sizes = " x ".join(str(max(s.stop - s.start for _, _, s in cut)) for cut in cuts)
    ax.set_title(f"{n_blocks} block{'s' if n_blocks > 1 else ''} of {sizes} voxels", fontsize=SMALL + 2)
    reached = " x ".join(map(str, halo))
    label = f"halo: {reached} voxels on each side" if n_blocks > 1 else "one block: no halo"
    ax.text(0.5, -0.01, label, transform=ax.transAxes, ha="center", va="top", fontsize=SMALL, color=HALO_COLOR)


def draw_curve(
    ax: Axes,
    blocks: Sequence[Shape3],
    peaks: Sequence[float],
    work: Sequence[float],
    budget: float,
    marks: Mapping[str, Shape3 | None],
    right: Axes | None = None,
) -> None:
    """Draw peak memory and work over the block's size, and mark some blocks.

    Parameters
    ----------
    ax
        Empty axes.
    blocks
        (z, y, x), any order.
    peaks, work
        Of each block: bytes, and the regularizer's work over naive backprop's.
    budget
        In bytes: a line.
    marks
        Names of blocks to mark: the first is drawn as a ring, the others as stars.
    right
        Empty axes over ``ax`` for the work. None: made here.
    """
    order = np.argsort([prod(block) for block in blocks])
    sides = np.cbrt([prod(blocks[i]) for i in order])
    gibs, extra = np.array([peaks[i] / GIB for i in order]), np.array([100 * (work[i] - 1) for i in order])
    right = ax.twinx() if right is None else right
    right.plot(sides, extra, color=PALETTE[4], linewidth=1.6, linestyle="-.")
    ax.plot(sides, gibs, color=PALETTE[0], linewidth=2.0)
    ax.axhline(budget / GIB, color=LIMIT_COLOR, linestyle="--", linewidth=1.4)
    for i, (name, block) in enumerate(marks.items()):
        if block is None:
            continue
        at, peak = np.cbrt(prod(block)), peaks[list(blocks).index(block)] / GIB
        style: dict[str, Any] = (
            {"marker": "*", "color": "#009E73", "markersize": 14, "markeredgecolor": "white"}
            if i
            else {"marker": "o", "color": "none", "markersize": 11, "markeredgecolor": "black", "markeredgewidth": 1.8}
        )
        ax.plot([at], [peak], linestyle="none", label=name, zorder=5 - i, **style)
    ax.set_ylim(0, max(1.2 * gibs.max(), 1.2 * budget / GIB if budget / GIB < 2 * gibs.max() else 0))
    ax.set_xlim(0, 1.03 * sides.max())
    right.set_ylim(0, 1.2 * max(extra.max(), 1.0))
    ax.set_xlabel("side of a cube as large as the block (voxels)", fontsize=SMALL)
    ax.set_ylabel("peak memory (GiB)", fontsize=SMALL + 1, color=PALETTE[0])
    right.set_ylabel("extra work (%)", fontsize=SMALL + 1, color="#A66F00")
    right.yaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    right.tick_params(labelsize=SMALL - 1)
    right.spines[["top"]].set_visible(False)
    ax.legend(fontsize=SMALL - 1, frameon=False, loc="upper center", ncols=2)
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    _dress(ax)


def draw_checks(ax: Axes, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw groups of bars beside each other: what was said, and what was found.

    Parameters
    ----------
    ax
        Empty axes.
    groups
        Labels under the groups, each with bars by name, in bytes; the same names have the same color.
    """
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / max(1, len(names))
    top = max((n for bars in groups.values() for n in bars.values()), default=1.0)
    scale, unit = (GIB, "GiB") if top >= GIB else (2**20, "MiB")
    for j, name in enumerate(names):
        places = [i for i, bars in enumerate(groups.values()) if name in bars]
        heights = [bars[name] / scale for bars in groups.values() if name in bars]
        at = [i + (j - (len(names) - 1) / 2) * width for i in places]
        ax.bar(at, heights, width=0.92 * width, color=PALETTE[(0, 2, 4, 3)[j % 4]], label=name)
        for x, height in zip(at, heights, strict=True):
            ax.text(x, height, f"{height:.3g}", ha="center", va="bottom", fontsize=SMALL - 1)
    ax.set_xticks(range(len(groups)), list(groups), fontsize=SMALL)
    ax.set_ylabel(f"peak memory ({unit})", fontsize=SMALL + 1)
    ax.margins(y=0.2)
    ax.legend(fontsize=SMALL - 1, frameon=False, loc="upper center", ncols=len(names))
    _dress(ax)


def wipe(figure: Figure) -> None:
    """Take away what is drawn and leave the axes with their ticks, which take longest to make."""
    for ax in figure.axes:
        legend = ax.get_legend()
        for bars in list(ax.containers):
            bars.remove()
        for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.texts, *([legend] if legend else [])):
            artist.remove()


def gib(n_bytes: float) -> str:
    """Return bytes in GiB with three digits."""
    return f"{n_bytes / GIB:.3g}" if n_bytes < 100 * GIB else f"{n_bytes / GIB:.0f}"


def _dress(ax: Axes) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(labelsize=SMALL)
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="y", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)


def _cut_off(ax: Axes, place: int, top: float) -> None:
    """Draw a white zigzag over a bar that goes on above the axes."""
    x = place + np.linspace(-0.31, 0.31, 13)
    y = top * (0.9 + 0.012 * (-1) ** np.arange(13))
    ax.fill_between(x, y, y + 0.02 * top, color="white", zorder=3, linewidth=0)


def _project(points: Any) -> Any:
    """Return where points (z, y, x) lie in the picture: z up, x to the right and y to the left, towards the reader."""
    z, y, x = np.asarray(points, dtype=float).T
    return np.stack([0.9 * x - 0.62 * y, z - 0.28 * x - 0.36 * y], axis=-1)


def _faces(low: Sequence[int], high: Sequence[int]) -> list[Any]:
    """Return the three faces of a box that can be seen: top, and the two in front."""
    (z0, y0, x0), (z1, y1, x1) = low, high
    top = [[z1, y0, x0], [z1, y0, x1], [z1, y1, x1], [z1, y1, x0]]
    front = [[z0, y1, x0], [z0, y1, x1], [z1, y1, x1], [z1, y1, x0]]
    side = [[z0, y0, x1], [z0, y1, x1], [z1, y1, x1], [z1, y0, x1]]
    return [_project(np.array(face)) for face in (top, front, side)]


def _loop(axis: int, edge: int, shape: Sequence[int]) -> Any:
    """Return the line along which a cut across ``axis`` meets the two faces that can be seen."""
    z, y, x = shape
    lines = (
        [[edge, y, 0], [edge, y, x], [edge, 0, x]],
        [[z, edge, 0], [z, edge, x], [0, edge, x]],
        [[z, 0, edge], [z, y, edge], [0, y, edge]],
    )
    return _project(np.array(lines[axis]))
