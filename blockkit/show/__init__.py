"""Figures and widgets: the only wing that imports matplotlib and ipywidgets.

Each function returns a matplotlib ``Figure``: as the last line of a notebook cell it is displayed. ``volumes`` is a
dict of column titles and volumes (z, y, x), torch or numpy, complex or real. A column named ``"reference"`` sets the
grey window; one whose name starts with ``"error"`` gets its own window and colors.

=====================================================================  ================================================
``show_slices(volumes, *, axes="z", index=None, part="magnitude",      one slice of each volume side by side; ``"zyx"``
voxel_size=None, metrics=False, crosshair=False)``                     gives three rows
``show_mip(volumes, *, axis="y", voxel_size=None, metrics=False)``     maximum intensity projections
``show_coils(maps, *, axis="z", index=None, part="magnitude",          one slice of each coil's sensitivity
voxel_size=None)``
``plot_blocks(volume, block_shape, *, halo=0, axis="z", index=None,    the grid of blocks over a slice, one with its
block=None)``                                                          halo
``plot_curves(curves, xlabel, ylabel, *, log="", limit=None,           named curves, y or (x, y)
limit_label="limit", title="")``
``plot_bars(labels, values, ylabel, *, log=False, limit=None,          bars with their values; a dict of values is
limit_label="limit", title="")``                                       stacked
``plot_points(points, xlabel, ylabel, *, log="", title="")``           named points (x, y), such as time against PSNR
``plot_trajectory(trajectory, n_readout, *, n_spokes=60)``             spokes in k-space and the sampling density
``shapes_only(figure)``                                                leave values out of a figure's fingerprint: for
                                                                       live training, wall times, rounding errors
``SliceViewer(volumes, *, voxel_size=None, face="auto",                three planes of each volume, one crosshair:
orientation=None)``                                                    pointer, wheel and keys, or sliders
``MemoryExplorer(network=None, *, image_shape=(300, 200, 300),         bytes of a step, naive and in blocks, as sizes
n_coils=8, n_samples=9_000_000, n_unrolls=6, budget_gib=24.0)``        and options change
``TrainingView(*, axis="y", every=None)``                              a training run while it goes on: ``fit(...,
                                                                       watch=TrainingView())``
=====================================================================  ================================================

Importing this package in a notebook also adds a fingerprint to each figure displayed: see
:mod:`blockkit.show.fingerprint`.
"""

from blockkit.show.explorer import MemoryExplorer
from blockkit.show.figures import plot_blocks, show_coils, show_mip, show_slices
from blockkit.show.fingerprint import register, shapes_only
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
