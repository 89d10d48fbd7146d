"""Plots of numbers: curves, bars, points and the sampling trajectory, each as one matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
LIMIT_COLOR = "#B2182B"


def plot_curves(
    curves: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    *,
    log: str = "",
    limit: float | None = None,
    limit_label: str = "limit",
    title: str = "",
) -> Figure:
    """Plot named curves in one set of axes.

    Parameters
    ----------
    curves
        Legend texts and curves: a sequence of y values, drawn over 0, 1, 2, ..., or a tuple ``(x, y)``. One of a
        single point is drawn as a large mark.
    xlabel, ylabel
        What is on the axes, with the unit in parentheses: ``"iteration"``, ``"peak memory (GiB)"``.
    log
        Which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
    limit, limit_label
        A horizontal line, such as a memory budget, and its legend text.
    title
        Above the axes.

    Examples
    --------
    >>> figure = bk.show.plot_curves({"loss": [0.5, 0.3, 0.2]}, "step", "loss", log="y")
    """
    figure, ax = _axes(xlabel, ylabel, log, title)
    for i, (name, curve) in enumerate(curves.items()):
        x, y = _points(name, curve)
        style = STYLES[i // len(PALETTE) % len(STYLES)]
        marker = MARKERS[i % len(MARKERS)] if len(y) <= 20 else ""
        color = PALETTE[i % len(PALETTE)]
        size = 4 if len(y) > 1 else 8
        ax.plot(x, y, color=color, linestyle=style, marker=marker, markersize=size, linewidth=1.6, label=name)
    _limit_line(ax, limit, limit_label)
    if len(curves) > 1 or limit is not None:
        ax.legend(fontsize=9, frameon=False)
    return figure


def plot_bars(
    labels: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    ylabel: str,
    *,
    log: bool = False,
    limit: float | None = None,
    limit_label: str = "limit",
    title: str = "",
) -> Figure:
    """Plot one bar for each label, with its value written above it.

    Parameters
    ----------
    labels
        Under the bars.
    values
        One height for each label; or a dict of parts, each with one height for each label, which are stacked.
    ylabel
        What the height is, with the unit in parentheses: ``"peak memory (GiB)"``.
    log
        Logarithmic heights.
    limit, limit_label
        A horizontal line, such as a memory budget, and what is written at it.
    title
        Above the axes.

    Examples
    --------
    >>> figure = bk.show.plot_bars(["naive", "in blocks"], [107.2, 2.7], "GiB", limit=24)
    """
    parts = values if isinstance(values, Mapping) else {"": values}
    heights = {name: np.asarray([float(v) for v in part]) for name, part in parts.items()}
    for name, part in heights.items():
        if len(part) != len(labels):
            raise ValueError(
                f"{name or 'values'} has {len(part)} numbers, expected one for each of {len(labels)} labels."
            )
    named = len(heights) > 1 or limit is not None
    width = max(3.6, 1.5 + 1.15 * len(labels)) + (1.2 if named else 0)
    figure, ax = _axes("", ylabel, "y" if log else "", title, size=(width, 3.4))
    base = np.zeros(len(labels))
    for i, (name, part) in enumerate(heights.items()):
        ax.bar(
            np.arange(len(labels)), part, bottom=base, width=0.62, color=PALETTE[i % len(PALETTE)], label=name or None
        )
        base = base + part
    for i, top in enumerate(base):
        note = ax.annotate(f"{top:.3g}", (i, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
        note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6})
    ax.set_xticks(range(len(labels)), labels)
    ax.margins(y=0.12)
    _limit_line(ax, limit, limit_label)
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    if named:  # beside the bars, whose values it would cover
        ax.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_points(
    points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, *, log: str = "", title: str = ""
) -> Figure:
    """Plot one named point for each entry, such as reconstruction time (s) against PSNR (dB); ``log`` as in curves.

    Examples
    --------
    >>> figure = bk.show.plot_points({"MBDL": (16, 37.0), "CS": (579, 34.5)}, "seconds", "PSNR (dB)", log="x")
    """
    figure, ax = _axes(xlabel, ylabel, log, title)
    for i, (name, (x, y)) in enumerate(points.items()):
        ax.plot([float(x)], [float(y)], MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)], markersize=8)
        ax.annotate(name, (float(x), float(y)), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    ax.margins(x=0.25, y=0.2)
    return figure


def plot_trajectory(trajectory: Tensor | NDArray[Any], n_readout: int, *, n_spokes: int = 60) -> Figure:
    """Draw the first spokes in k-space, and how densely all samples fill it.

    Parameters
    ----------
    trajectory
        (sample, 3), columns kz ky kx, in cycles/FOV; the samples of one spoke follow each other.
    n_readout
        Samples a spoke.
    n_spokes
        How many spokes to draw; the density at the right counts all of them.

    Examples
    --------
    >>> figure = bk.show.plot_trajectory(scan.trajectory, 32)
    """
    k = np.asarray(trajectory.detach().cpu() if isinstance(trajectory, Tensor) else trajectory, dtype=np.float64)
    if k.ndim != 2 or k.shape[1] != 3 or n_readout < 2 or k.shape[0] % n_readout:
        raise ValueError(
            f"trajectory has shape {k.shape}, expected (sample, 3) with a multiple of n_readout = {n_readout} samples."
        )
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    space = figure.add_subplot(1, 2, 1, projection="3d")
    spokes = k.reshape(-1, n_readout, 3)
    shown = spokes[:n_spokes]
    for i, spoke in enumerate(shown):
        shade = 0.15 + 0.7 * i / max(len(shown) - 1, 1)
        space.plot(spoke[:, 2], spoke[:, 1], spoke[:, 0], color=(0.0, 0.45 * shade, shade), linewidth=0.8)
    space.set_box_aspect((1, 1, 1), zoom=0.95)
    for name in "xyz":
        getattr(space, f"set_{name}label")(f"k{name}", fontsize=9)
        space.tick_params(axis=name, labelsize=7)
        getattr(space, f"{name}axis").set_major_locator(MaxNLocator(4))
    space.set_title(f"first {len(shown)} of {len(spokes)} spokes (cycles/FOV)", fontsize=10)
    _draw_density(figure.add_subplot(1, 2, 2), np.linalg.norm(k, axis=1))
    return figure


def _draw_density(ax: Axes, radius: NDArray[np.float64]) -> None:
    edges = np.linspace(0, radius.max(), min(33, max(3, int(radius.max()) + 1)))
    counts, _ = np.histogram(radius, edges)
    density = counts / (4 / 3 * np.pi * np.diff(edges**3))
    ax.plot((edges[1:] + edges[:-1]) / 2, density, color=PALETTE[0], linewidth=1.6, label="measured")
    ax.axhline(1.0, color=LIMIT_COLOR, linestyle="--", linewidth=1.2, label="fully sampled")
    _dress(ax, "distance from the center (cycles/FOV)", "samples in a unit cell of k-space", "y", "Sampling density")
    ax.legend(fontsize=9, frameon=False)


def _axes(
    xlabel: str, ylabel: str, log: str, title: str, *, size: tuple[float, float] = (5.6, 3.4)
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.add_subplot()
    _dress(ax, xlabel, ylabel, log, title)
    return figure, ax


def _dress(ax: Axes, xlabel: str, ylabel: str, log: str, title: str) -> None:
    if set(log) - set("xy"):
        raise ValueError(f"log is {log!r}, expected '', 'x', 'y' or 'xy'.")
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.set_title(title, fontsize=11)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    for name in log:
        getattr(ax, f"set_{name}scale")("log")
        axis = getattr(ax, f"{name}axis")
        axis.set_major_formatter(_PlainLog(10))
        # The 1.5 is decades in matplotlib 3.10, and there are labels between them; major ticks from 3.11 on, so one.
        axis.set_minor_formatter(_PlainLog(10, labelOnlyBase=False, minor_thresholds=(1.5, 0.4)))


class _PlainLog(LogFormatterSciNotation):
    """Label a logarithmic axis where matplotlib would, but from 0.01 to 10,000 with 40 in place of 4 x 10^1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = str(super().__call__(x, pos))
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        return f"{x:g}" if label and low >= 5e-3 and high <= 2e4 else label


def _limit_line(ax: Axes, limit: float | None, label: str) -> None:
    if limit is not None:
        ax.axhline(float(limit), color=LIMIT_COLOR, linestyle="--", linewidth=1.4, label=f"{label} ({limit:.3g})")


def _points(name: str, curve: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    paired = isinstance(curve, tuple) and len(curve) == 2 and np.ndim(_plain(curve[0])) == 1
    y = _plain(curve[1] if paired else curve)
    x = _plain(curve[0]) if paired else np.arange(y.size, dtype=np.float64)
    if y.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"curve {name!r} has x of shape {x.shape} and y of shape {y.shape}, expected two rows of equal length."
        )
    return x, y


def _plain(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
