"""Figures and widgets: the only wing that imports matplotlib and ipywidgets.

Each function returns a matplotlib ``Figure``: as the last line of a notebook cell it is displayed. ``volumes`` is a
dict of column titles and volumes (z, y, x), torch or numpy, complex or real. A column named ``"reference"`` sets the
grey window; one whose name starts with ``"error"`` gets its own window and colors.

Volumes: :func:`show_slices` (one slice of each side by side; ``axes="zyx"`` gives three rows), :func:`show_mip`
(maximum intensity projections), :func:`show_coils` (one slice of each coil's sensitivity), :func:`plot_blocks` (the
grid of blocks over a slice, one with its halo).

Numbers: :func:`plot_curves`, :func:`plot_bars`, :func:`plot_points`, and :func:`plot_trajectory` (spokes in k-space and
the sampling density).

Widgets: :class:`SliceViewer` (three planes of each volume, one crosshair), :class:`MemoryExplorer` (bytes of a step,
naive and in blocks, as sizes and options change), :class:`TrainingView` (a run while it goes on:
``fit(..., watch=TrainingView())``).

:func:`shapes_only` leaves values out of a figure's fingerprint: for live training, wall times, rounding errors.

Importing this package in a notebook also adds a fingerprint to each figure displayed: see
:mod:`blockkit.show.fingerprint`.
"""

from blockkit.show.explorer import MemoryExplorer
from blockkit.show.figures import plot_blocks, show_coils, show_mip, show_slices
from blockkit.show.fingerprint import shapes_only
from blockkit.show.pictures import register
from blockkit.show.plots import plot_bars, plot_curves, plot_points, plot_trajectory
from blockkit.show.slices import SliceViewer
from blockkit.show.training_view import TrainingView

__all__ = [
    "MemoryExplorer",
    "SliceViewer",
    "TrainingView",
    "plot_bars",
    "plot_blocks",
    "plot_curves",
    "plot_points",
    "plot_trajectory",
    "shapes_only",
    "show_coils",
    "show_mip",
    "show_slices",
]

register()
