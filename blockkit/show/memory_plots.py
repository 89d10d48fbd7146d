"""Pictures of memory: bytes by part against a budget, blocks in the volume, peak and work over the block's size."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from blockkit.blockwise.blocks import cut_axis
from blockkit.checks import Shape3
from blockkit.ledger import GIB
from blockkit.show.plots import PALETTE
from blockkit.show.sketch import Chart, Sketch, circle, star

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
CHECK_COLORS = (PALETTE[0], PALETTE[2], PALETTE[4])
VOLUME_COLOR, BLOCK_COLOR, HALO_COLOR = "#56B4E9", "#E69F00", "#D55E00"
PEAK_COLOR, WORK_COLOR, BEST_COLOR = PALETTE[0], PALETTE[4], PALETTE[2]
DASHED, DASHED_AND_DOTTED = (6, 4), (7, 3, 2, 3)
HEIGHT = 390
FAR = 2.5  # times the highest bar: from there on the budget is above the axes
HEADROOM = 1.3  # of the axis over the highest bar that is shown whole, or the budget


def parts_sketch(bars: Mapping[str, Mapping[str, int]], budget: float) -> Sketch:
    """Return bytes by part as stacked bars, the last one whole and the others cut off where they leave the frame.

    Parameters
    ----------
    bars
        Labels under the bars, and bytes by part.
    budget
        In bytes: a line.
    """
    sketch = Sketch(520, HEIGHT)
    totals = [sum(parts.values()) for parts in bars.values()]
    highest = max(totals[-1], min(max(totals), FAR * totals[-1]))
    near = budget <= FAR * highest
    top = HEADROOM * (max(budget, totals[-1]) if near else highest)
    chart = Chart(sketch, 68, 12, 352, HEIGHT - 32, len(bars), top / GIB)
    chart.draw_y("peak memory (GiB)")
    for i, (label, parts) in enumerate(bars.items()):
        _draw_bar(chart, i, parts)
        sketch.words(chart.at(i + 0.5, 0)[0], chart.bottom + 20, label, anchor="middle", size=13)
    line = budget / GIB if near else chart.most_y
    (left, y), (right, _) = chart.at([0, len(bars)], line)
    sketch.line([(left, y), (right, y)], "limit", width=2, dash=DASHED)
    note = f"budget {gib(budget)} GiB" + ("" if near else " ↑")
    sketch.words(right - 2, y - 5 if near else y + 15, note, color="limit", anchor="end", style="outlined")
    for i, total in enumerate(totals):
        beyond = total > top
        x, y = chart.at(i + 0.5, 0.93 * chart.most_y if beyond else total / GIB)
        note = f"{gib(total)} GiB" + (" ↑" if beyond else "")
        sketch.words(x, y - 5, note, anchor="middle", style="bold outlined", size=13)
    chart.draw_frame()
    shown = [name for name in reversed(PART_COLORS) if any(parts.get(name) for parts in bars.values())]
    for row, name in enumerate(shown):
        sketch.bar(364, 16 + 21 * row, 12, 12, PART_COLORS[name])
        sketch.words(382, 27 + 21 * row, PART_NAMES[name])
    return sketch


def _draw_bar(chart: Chart, place: int, parts: Mapping[str, int]) -> None:
    """Stack the parts of one bar, with a zigzag where it goes on above the frame."""
    base = 0.0
    for name, color in PART_COLORS.items():
        above = min(base + parts.get(name, 0) / GIB, chart.most_y)
        if above > base:
            (left, y1), (right, y0) = chart.at([place + 0.21, place + 0.79], [above, base])
            chart.sketch.bar(left, y1, right - left, y0 - y1, color)
        base = above
    if sum(parts.values()) / GIB > chart.most_y:
        (left, y), (right, _) = chart.at([place + 0.19, place + 0.81], 0.88 * chart.most_y)
        x, zigzag = np.linspace(left, right, 13), y + 4.0 * (-1) ** np.arange(13)
        below = np.stack([x, zigzag], axis=-1)
        chart.sketch.area(np.concatenate([below, below[::-1] - (0, 7)]), "paper")


def blocks_sketch(image_shape: Shape3, block_shape: Shape3, halo: Shape3, stride: Shape3 = (1, 1, 1)) -> Sketch:
    """Return the volume cut into blocks, with one block and its window where they can be seen.

    Parameters
    ----------
    image_shape, block_shape, halo, stride
        In voxels (z, y, x), as in :func:`~blockkit.blockwise.blocks.cut_blocks`.
    """
    sketch = Sketch(430, HEIGHT)
    shape = [-(-n // s) * s for n, s in zip(image_shape, stride, strict=True)]
    cuts = [cut_axis(*sizes) for sizes in zip(shape, block_shape, halo, stride, strict=True)]
    place = _placed(shape, (20, 44, 410, HEIGHT - 48))
    for face in _faces([0, 0, 0], shape):
        sketch.area(place(face), VOLUME_COLOR, alpha=0.16, edge=VOLUME_COLOR, width=1.4)
    for axis in range(3):
        for edge in (cut[2].stop for cut in cuts[axis][:-1]):
            sketch.line(place(_loop(axis, edge, shape)), VOLUME_COLOR)
    chosen = [cuts[0][-1], cuts[1][-1], cuts[2][len(cuts[2]) // 2]]  # at the top and in front
    for part, color, alpha in ((0, HALO_COLOR, 0.3), (2, BLOCK_COLOR, 0.85)):
        sides = [cut[part] for cut in chosen]
        for face in _faces([side.start for side in sides], [side.stop for side in sides]):
            sketch.area(place(face), color, alpha=alpha, edge=HALO_COLOR)
    n_blocks = prod(map(len, cuts))
    sizes = " x ".join(str(max(s.stop - s.start for _, _, s in cut)) for cut in cuts)
    title = f"{n_blocks} block{'s' if n_blocks > 1 else ''} of {sizes} voxels"
    sketch.words(215, 24, title, anchor="middle", style="bold", size=14)
    reached = " x ".join(map(str, halo))
    label = f"halo: {reached} voxels on each side" if n_blocks > 1 else "one block: no halo"
    sketch.words(215, HEIGHT - 14, label, anchor="middle", size=13)
    return sketch


def curve_sketch(
    blocks: Sequence[Shape3],
    peaks: Sequence[float],
    work: Sequence[float],
    budget: float,
    marks: Mapping[str, Shape3 | None],
) -> Sketch:
    """Return peak memory and work over the block's size, with some blocks marked.

    Parameters
    ----------
    blocks
        (z, y, x), any order.
    peaks, work
        Of each block: bytes, and the regularizer's work over naive backprop's.
    budget
        In bytes: a line.
    marks
        Names of blocks to mark: the first is drawn as a ring, the others as stars.
    """
    sketch = Sketch(500, HEIGHT)
    order = np.argsort([prod(block) for block in blocks])
    sides = np.cbrt([float(prod(blocks[i])) for i in order])
    gibs, extra = np.array([peaks[i] / GIB for i in order]), np.array([100 * (work[i] - 1) for i in order])
    line = budget / GIB
    frame = (66, 54, 434, HEIGHT - 46, 1.03 * sides.max())
    chart = Chart(sketch, *frame, 1.15 * max(gibs.max(), line if line < 2 * gibs.max() else 0))
    right = Chart(sketch, *frame, 1.15 * max(extra.max(), 1.0))
    chart.draw_y("peak memory (GiB)")
    right.draw_y("extra work (%)", right=True)
    chart.draw_x("side of a cube as large as the block (voxels)")
    sketch.line(right.at(sides, extra), WORK_COLOR, width=2.2, dash=DASHED_AND_DOTTED)
    sketch.line(chart.at(sides, gibs), PEAK_COLOR, width=2.8)
    if line <= chart.most_y:
        sketch.line(chart.at([0, chart.most_x], line), "limit", width=2, dash=DASHED)
    for i, block in reversed([*enumerate(marks.values())]):
        if block is not None:
            _mark(sketch, chart.at(np.cbrt(prod(block)), peaks[list(blocks).index(block)] / GIB), chosen=not i)
    chart.draw_frame()
    _draw_key(sketch, [name for name, block in marks.items() if block is not None])
    return sketch


def _draw_key(sketch: Sketch, marked: Sequence[str]) -> None:
    """Say above a curve what its lines and marks are."""
    lines: dict[str, tuple[str, tuple[float, ...]]] = {
        "peak memory": (PEAK_COLOR, ()),
        "extra work": (WORK_COLOR, DASHED_AND_DOTTED),
        "budget": ("limit", DASHED),
    }
    for i, (name, (color, dash)) in enumerate(lines.items()):
        sketch.line([(64 + 140 * i, 16), (96 + 140 * i, 16)], color, width=2.4, dash=dash)
        sketch.words(104 + 140 * i, 20, name)
    for i, name in enumerate(marked):
        _mark(sketch, np.array([80 + 140 * i, 36]), chosen=not i)
        sketch.words(104 + 140 * i, 40, name)


def _mark(sketch: Sketch, place: Any, *, chosen: bool) -> None:
    """Draw a ring around the chosen block, a star on another."""
    if chosen:
        ring = circle(place, 7.5)
        sketch.line(np.concatenate([ring, ring[:1]]), "ink", width=2.4)
    else:
        sketch.area(star(place, 9.5), BEST_COLOR, edge="paper")


def checks_sketch(groups: Mapping[str, Mapping[str, float]]) -> Sketch:
    """Return groups of bars beside each other: what was said, and what was found.

    Parameters
    ----------
    groups
        Labels under the groups, each with bars by name, in bytes; the same names have the same color. A label may have
        two lines.
    """
    sketch = Sketch(500, HEIGHT)
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / max(1, len(names))
    top = max((n for bars in groups.values() for n in bars.values()), default=1.0)
    scale, unit = (GIB, "GiB") if top >= GIB else (2**20, "MiB")
    chart = Chart(sketch, 68, 44, 490, HEIGHT - 46, max(1, len(groups)), 1.12 * max(top, 1.0) / scale)
    chart.draw_y(f"peak memory ({unit})")
    for i, (label, bars) in enumerate(groups.items()):
        for line, text in enumerate(label.splitlines()):
            sketch.words(chart.at(i + 0.5, 0)[0], chart.bottom + 18 + 17 * line, text, anchor="middle", size=13)
        for name, n_bytes in bars.items():
            j = names.index(name)
            start = i + 0.5 + (j - len(names) / 2) * width
            (left, y1), (end, y0) = chart.at([start, start + 0.92 * width], [n_bytes / scale, 0])
            sketch.bar(left, y1, end - left, y0 - y1, CHECK_COLORS[j % 3])
            sketch.words((left + end) / 2, y1 - 4, f"{n_bytes / scale:.3g}", anchor="middle")
    chart.draw_frame()
    for j, name in enumerate(names):
        sketch.bar(70 + 140 * j, 12, 12, 12, CHECK_COLORS[j % 3])
        sketch.words(88 + 140 * j, 23, name)
    return sketch


def gib(n_bytes: float) -> str:
    """Return bytes in GiB with three digits."""
    return f"{n_bytes / GIB:.3g}" if n_bytes < 100 * GIB else f"{n_bytes / GIB:.0f}"


def _placed(shape: Sequence[int], box: tuple[float, float, float, float]) -> Any:
    """Return the function from places in the plane of :func:`_project` to pixels that fits a volume into a box."""
    corners = _project([[z, y, x] for z in (0, shape[0]) for y in (0, shape[1]) for x in (0, shape[2])])
    low, high = corners.min(axis=0), corners.max(axis=0)
    left, top, right, bottom = box
    scale = min((right - left) / (high[0] - low[0]), (bottom - top) / (high[1] - low[1]))
    center, middle = np.array([left + right, top + bottom]) / 2, (low + high) / 2
    return lambda points: center + (points - middle) * (scale, -scale)


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
    return [_project(face) for face in (top, front, side)]


def _loop(axis: int, edge: int, shape: Sequence[int]) -> Any:
    """Return the line along which a cut across ``axis`` meets the two faces that can be seen."""
    z, y, x = shape
    lines = (
        [[edge, y, 0], [edge, y, x], [edge, 0, x]],
        [[z, edge, 0], [z, edge, x], [0, edge, x]],
        [[z, 0, edge], [z, y, edge], [0, y, edge]],
    )
    return _project(lines[axis])
