"""Look at a scan in a file without reading it whole: first what its head says, then the values, piece by piece."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from blockkit.checks import Shape3
from blockkit.data.files import ScanFileError, check_voxel_size, counted
from blockkit.data.formats import find_datasets, read_voxel_size
from blockkit.data.hdf5 import check_stored, open_hdf5
from blockkit.data.ismrmrd import (
    check_promises,
    choose_readouts,
    find_acquisitions,
    find_group,
    load_ismrmrd,
    n_kept,
    read_header,
    read_heads,
)
from blockkit.data.opening import check_says_all, kind_of
from blockkit.data.raw import named_in_errors
from blockkit.data.scan import check_shapes
from blockkit.physics.inputs import check_trajectory

_BYTES_AT_ONCE = 2**26


@dataclass(frozen=True)
class ScanHead:
    """What the head of a file says of the scan in it.

    Attributes
    ----------
    image_shape, n_coils, n_samples
        Shape ``(z, y, x)`` of the image, coils, k-space samples of each coil.
    voxel_size
        ``(z, y, x)`` in mm.
    has_reference
        Whether there is an image to compare with.
    has_field_map
        Whether there is a field map, so that reconstruction is off resonance.
    """

    image_shape: Shape3
    n_coils: int
    n_samples: int
    voxel_size: tuple[float, float, float]
    has_reference: bool = False
    has_field_map: bool = False

    def __str__(self) -> str:
        """Return it in a few words."""
        sizes = " x ".join(map(str, self.image_shape))
        reference = "with" if self.has_reference else "without"
        return f"{sizes} voxels, {counted(self.n_coils, 'coil')}, {self.n_samples} samples, {reference} reference"


def read_head(path: str | os.PathLike[str]) -> ScanHead:
    """Return what a file's head says of its scan, once all that it says is known to fit together.

    Parameters
    ----------
    path
        A file that :func:`~blockkit.data.opening.open_scan` reads.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If it is damaged or cut short, lacks a field, or its fields do not fit; the message names them.
    """
    kind = kind_of(path)
    if kind != "blockkit":
        check_says_all(path, kind)
        return _of_ismrmrd(Path(path))
    with open_hdf5(path, values=False) as file, _named(path):
        datasets = find_datasets(file, Path(path))
        for name, dataset in datasets.items():
            check_stored(dataset, name, Path(path))
        check_shapes(**{name: torch.empty(dataset.shape, dtype=_dtype(dataset), device="meta")
                        for name, dataset in datasets.items()})  # fmt: skip
        shape, (n_coils, n_samples) = datasets["maps"].shape[1:], datasets["kspace"].shape
        voxel_size = check_voxel_size(read_voxel_size(file, Path(path)))
        return ScanHead(shape, n_coils, n_samples, voxel_size, "reference" in datasets, "field_map" in datasets)


def look_through(path: str | os.PathLike[str]) -> None:
    """Raise unless the values in a file are finite and of use; of the project's own HDF5, 64 MiB are read at a time.

    Parameters
    ----------
    path
        A file that passed :func:`read_head`.

    Raises
    ------
    ScanFileError
        If a value is NaN or infinite, k-space, maps or the reference zero everywhere, or the trajectory leaves
        ``-n/2`` to ``n/2``; the message names the field, and the first bad index.
    """
    if kind_of(path) != "blockkit":
        raw = load_ismrmrd(path)
        with _named(path):
            _check_points(raw.trajectory, raw.image_shape)
            if not raw.kspace.any():
                raise ValueError("kspace is zero everywhere, expected a signal.")
        return
    with open_hdf5(path) as file, _named(path):
        datasets = find_datasets(file, Path(path))
        for name, dataset in datasets.items():
            _check_values(dataset, name)
        points = torch.from_numpy(np.asarray(datasets["trajectory"][()], "float32"))
        _check_points(points, datasets["maps"].shape[1:])


def _of_ismrmrd(path: Path) -> ScanHead:
    with open_hdf5(path, values=False) as file, named_in_errors(path):
        group = find_group(file, path)
        header, table = read_header(group, path), find_acquisitions(group, path)
        heads = read_heads(table)
        imaging = choose_readouts(heads, {})
        check_promises(heads, path)
        first = heads[imaging[0]]
        if first["trajectory_dimensions"] < 2:
            raise ValueError(
                f"the acquisitions hold no trajectory: trajectory_dimensions is {first['trajectory_dimensions']}. Give "
                "it to load_ismrmrd(path, trajectory=...), and write the scan once: bk.make_scan(raw).save(path)."
            )
        z, y, x = (fov / n for fov, n in zip(header.recon.fov, header.recon.matrix, strict=True))
        return ScanHead(
            header.recon.matrix, int(first["active_channels"]), int(n_kept(heads)[imaging].sum()), (z, y, x)
        )


def _check_values(dataset: h5py.Dataset, name: str) -> None:
    n_bad, largest = 0, 0.0
    first: tuple[int, ...] = ()
    for start, values in _pieces(dataset):
        bad = ~np.isfinite(values)
        if bad.any():
            at = np.unravel_index(int(np.flatnonzero(bad)[0]), values.shape)
            first = first if n_bad else tuple(int(i + s) for i, s in zip(at, start, strict=True))
            n_bad += int(bad.sum())
        largest = max(largest, float(np.abs(values).max(initial=0.0)))
    if n_bad:
        raise ValueError(
            f"{name} has {n_bad} values that are NaN or infinite, the first at index {first}. Expected finite numbers."
        )
    if largest == 0 and name not in ("field_map", "times"):  # a scan on resonance, or all at once
        raise ValueError(f"{name} is zero everywhere, expected a signal.")


def _pieces(dataset: h5py.Dataset) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Yield pieces of a dataset, with the index where each begins."""
    if dataset.ndim == 1:
        step = max(1, _BYTES_AT_ONCE // dataset.dtype.itemsize)
        for i in range(0, dataset.shape[0], step):
            yield (i,), np.asarray(dataset[i : i + step])
        return
    row = prod(dataset.shape[2:]) * dataset.dtype.itemsize
    columns = max(1, min(dataset.shape[1], _BYTES_AT_ONCE // max(1, row)))
    rows = max(1, _BYTES_AT_ONCE // max(1, columns * row)) if columns == dataset.shape[1] else 1
    rest = (0,) * (dataset.ndim - 2)
    for i in range(0, dataset.shape[0], rows):
        for j in range(0, dataset.shape[1], columns):
            yield (i, j, *rest), np.asarray(dataset[i : i + rows, j : j + columns])


def _check_points(points: torch.Tensor, image_shape: Shape3) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the numbers may mean: that is for the one who reconstructs
        check_trajectory(points, image_shape)


def _dtype(dataset: h5py.Dataset) -> torch.dtype:
    return torch.complex64 if dataset.dtype.kind == "c" else torch.float32


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in an error, and say that it is one of what it holds."""
    try:
        yield
    except ScanFileError:
        raise
    except (TypeError, ValueError) as error:
        raise ScanFileError(f"'{os.fspath(path)}' holds a scan that does not fit together: {error}") from error
