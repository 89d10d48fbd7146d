"""Scans kept as plain arrays: NumPy (.npy, .npz), MATLAB (.mat, any version since 5) and other HDF5.

Such a file does not say what its axes are, so the caller names them, in the file's order:

====================================  ====================================================================
``ksp: coil spoke readout``           the array ``ksp``; axes other than coil count samples
``ksp: readout spoke coil (re im)``   real numbers, the last axis is real and imaginary part
``coord: spoke readout (kx ky kz)``   a trajectory, with its columns; ``-`` for one that is no axis
``b1: x y z coil``                    coil maps
====================================  ====================================================================
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from blockkit.data.array_files import Stored, open_arrays
from blockkit.data.files import check_voxel_size
from blockkit.data.raw import RawScan, as_volume, named_in_errors
from blockkit.data.units import check_columns, check_unit, smallest_shape, standard_trajectory

Axes = list[str | tuple[str, ...]]
_PAIR = ("re", "im")
_KINDS = ("kspace", "trajectory", "maps", "noise")


def load_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, str],
    *,
    voxel_size: Sequence[float],
    image_shape: Sequence[int] | None = None,
    unit: str | None = None,
) -> RawScan:
    """Read a scan from arrays whose axes the caller names, as this module's head shows.

    Parameters
    ----------
    path
        An ``.npz``, ``.mat`` or HDF5 file, or a folder with ``.npy`` files, one array each, named without the ending.
    arrays
        Name and axes of ``"kspace"``, ``"trajectory"`` and, if they are there, ``"maps"`` and ``"noise"``: such as
        ``{"kspace": "ksp: coil spoke readout", "trajectory": "coord: spoke readout (kx ky kz)"}``. Axes of k-space are
        ``coil`` if there are several, ``readout`` for the samples of a spoke or interleave, and others by any name; the
        trajectory has the same, in any order, but for coil, and its columns in parentheses. Maps have the axes ``x``,
        ``y``, ``z`` and ``coil``, noise ``coil`` and others.
    voxel_size
        ``(z, y, x)`` in mm.
    image_shape
        ``(z, y, x)`` of the image that is wanted. None takes that of the maps, or else the smallest even one that holds
        the trajectory.
    unit
        That of the trajectory, as :func:`~blockkit.data.units.standard_trajectory` has them. None takes cycles/FOV, and
        raises if the numbers do not look like it.

    Returns
    -------
    RawScan
        With all arrays in memory; samples along ``readout`` follow each other.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If the file is damaged, an array is missing, or has other axes than named; the message says which.
    ValueError
        If the names of axes are not as above.

    Examples
    --------
    >>> import numpy as np
    >>> coord = scan.trajectory.reshape(80, 32, 3).flip(2)  # kx ky kz
    >>> np.savez("scan.npz", ksp=scan.kspace.reshape(4, 80, 32), coord=coord)
    >>> arrays = {"kspace": "ksp: coil spoke readout", "trajectory": "coord: spoke readout (kx ky kz)"}
    >>> bk.load_arrays("scan.npz", arrays, voxel_size=(2, 2, 2)).kspace.shape
    torch.Size([4, 2560])
    """
    check_unit(unit)
    voxel = check_voxel_size(voxel_size)
    if set(arrays) - set(_KINDS) or not {"kspace", "trajectory"} <= set(arrays):
        raise ValueError(f"arrays names {', '.join(arrays) or 'none'}, expected kspace and trajectory, of {_KINDS}.")
    wanted = {kind: parse(text) for kind, text in arrays.items()}
    sample_axes = _sample_axes("kspace", wanted["kspace"][1])
    with open_arrays(path) as stored, named_in_errors(path):
        values, axes = _read(stored, *wanted["kspace"])
        sizes = {axis: values.shape[axes.index(axis)] for axis in sample_axes}
        points, columns = _read_points(stored, *wanted["trajectory"], sizes)
        maps = noise = None
        if "maps" in wanted:
            maps = _as_tensor(_flat(*_read(stored, *wanted["maps"]), ["coil", "z", "y", "x"], []))
        if "noise" in wanted:
            noise_axes = _sample_axes("noise", wanted["noise"][1])
            noise = _as_tensor(_flat(*_read(stored, *wanted["noise"]), ["coil"], noise_axes))
        shape = as_volume(image_shape if image_shape is not None else _shape(maps, points, columns, unit))
        return RawScan(
            _as_tensor(_flat(values, axes, ["coil"], sample_axes)),
            standard_trajectory(points, columns, shape, unit),
            shape,
            voxel,
            noise=noise,
            n_readout=sizes.get("readout"),
            maps=maps,
        )


def parse(text: str) -> tuple[str, Axes]:
    """Return name and axes of ``"name: axis axis (column column)"``, or raise."""
    name, colon, rest = text.partition(":")
    words = re.findall(r"\([^()]*\)|[^\s()]+|[()]", rest)
    axes: Axes = [tuple(word[1:-1].split()) if word.endswith(")") and len(word) > 1 else word for word in words]
    flat = [axis for word in axes for axis in ((word,) if isinstance(word, str) else word or ("(",)) if axis != "-"]
    if not colon or not name.strip() or not axes or {"(", ")"} & set(flat) or len(set(flat)) < len(flat):
        raise ValueError(
            f"{text!r} does not name an array and its axes, expected something like 'kspace: coil spoke readout' or "
            "'trajectory: spoke readout (kx ky kz)', each axis once."
        )
    return name.strip(), axes


def _sample_axes(kind: str, axes: Axes) -> list[str]:
    """Return the axes that count samples, readout last: the fastest."""
    found = [axis for axis in axes if isinstance(axis, str) and axis != "coil"]
    if not found:
        raise ValueError(f"{kind} has the axes {_written(axes)}, expected one that counts samples, beside coil.")
    return sorted(found, key="readout".__eq__)


def _read(stored: dict[str, Stored], name: str, axes: Axes) -> tuple[NDArray[Any], list[str]]:
    """Return complex numbers and the names of their axes."""
    one = _find(stored, name, axes)
    pair = [i for i, axis in enumerate(axes) if isinstance(axis, tuple)]
    if any(axes[i] != _PAIR for i in pair) or len(pair) > 1:
        raise ValueError(f"{name} has the axes {_written(axes)}: parentheses may only hold (re im) here.")
    if pair and (one.shape[pair[0]] != 2 or one.dtype.kind not in "fiu"):
        raise ValueError(f"{name} has shape {one.shape} and dtype {one.dtype}, expected 2 real numbers along (re im).")
    if not pair and one.dtype.kind != "c":
        raise ValueError(
            f"{name} has dtype {one.dtype}, expected complex numbers. "
            "If real and imaginary part are an axis, name it (re im)."
        )
    values = one.read()
    left = [axis for axis in axes if isinstance(axis, str)]
    with np.errstate(over="ignore"):  # what does not fit into complex64 is refused as infinite
        if pair:
            halves = np.moveaxis(values, pair[0], 0)
            values = np.empty(halves.shape[1:], np.complex64)
            values.real, values.imag = halves
        return values.astype(np.complex64, copy=False), left


def _find(stored: dict[str, Stored], name: str, axes: Axes) -> Stored:
    if name not in stored:
        raise ValueError(f"there is no array '{name}'. There are: {', '.join(sorted(stored)) or 'none'}.")
    one = stored[name]
    if len(one.shape) != len(axes):
        raise ValueError(f"{name} has shape {one.shape}, and {len(axes)} axes are named: {_written(axes)}.")
    if 0 in one.shape:
        raise ValueError(f"{name} has shape {one.shape}, expected at least one along each axis.")
    return one


def _flat(values: NDArray[Any], axes: list[str], first: list[str], rest: list[str]) -> NDArray[Any]:
    """Return an array with the axes ``first``, of one where the array lacks them, and the others flat behind them."""
    order = [axis for axis in (*first, *rest) if axis in axes]
    if len(order) < len(axes):
        raise ValueError(f"the axes {' '.join(axes)} were named, expected those of {' '.join((*first, *rest))}.")
    moved = values.transpose([axes.index(axis) for axis in order])
    sizes = [values.shape[axes.index(axis)] if axis in axes else 1 for axis in first]
    return moved.reshape((*sizes, -1) if rest else sizes)


def _read_points(
    stored: dict[str, Stored], name: str, axes: Axes, expected: dict[str, int]
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the trajectory (sample, column) in the order of k-space's sample axes, and what its columns are."""
    one = _find(stored, name, axes)
    at = [i for i, axis in enumerate(axes) if isinstance(axis, tuple)]
    if len(at) != 1:
        raise ValueError(f"{name} has the axes {_written(axes)}, expected one in parentheses, such as (kx ky kz).")
    columns = tuple(axes[at[0]])
    check_columns(columns, one.shape[at[0]])
    names = [axis for axis in axes if isinstance(axis, str)]
    sizes = {axis: one.shape[axes.index(axis)] for axis in names}
    if sizes != expected:
        raise ValueError(f"{name} has the sample axes {sizes}, and k-space {expected}: expected the same.")
    if one.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {one.dtype}, expected real numbers.")
    values = np.moveaxis(one.read(), at[0], -1)
    order = [names.index(axis) for axis in expected]
    return values.transpose([*order, len(order)]).reshape(-1, values.shape[-1]), columns


def _shape(maps: torch.Tensor | None, points: NDArray[Any], columns: Sequence[str], unit: str | None) -> Sequence[int]:
    if maps is not None:
        return tuple(maps.shape[1:])
    k = np.zeros((len(points), 3))
    for i, column in enumerate(columns):
        if column != "-":
            k[:, ("kz", "ky", "kx").index(column)] = points[:, i]
    return smallest_shape(k, unit)


def _as_tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _written(axes: Axes) -> str:
    return " ".join(axis if isinstance(axis, str) else f"({' '.join(axis)})" for axis in axes) or "none"
