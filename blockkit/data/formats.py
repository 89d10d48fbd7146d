"""Files: the project's own HDF5 layout for scans, and NIfTI for images.

A scan file is HDF5 with the root attributes ``format`` = "blockkit-scan", ``version`` = 1 and ``voxel_size`` (three
numbers z, y, x in mm), and the datasets

============  =========  ====================  ==============================================
name          dtype      axes                  unit
============  =========  ====================  ==============================================
kspace        complex64  coil, sample          arbitrary
trajectory    float32    sample, (kz, ky, kx)  cycles per field of view
maps          complex64  coil, z, y, x         1
reference     complex64  z, y, x               arbitrary; this one may be missing
field_map     float32    z, y, x               Hz, off-resonance; may be missing, with times
times         float32    sample                s, when samples were read out; may be missing
============  =========  ====================  ==============================================

Complex numbers are compounds of two float32, ``r`` and ``i``. Each dataset says its axes and unit in attributes.
Any byte order will do, and for the attributes strings of fixed or variable length and arrays of one element.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import check_volume
from blockkit.data.files import ScanFileError, check_is_file, check_voxel_size, printable, written_beside
from blockkit.data.hdf5 import find, open_hdf5, plain, read_attribute, read_dataset
from blockkit.group import ALONE, Group

FORMAT, VERSION = "blockkit-scan", 1

_LAYOUT = {
    "kspace": ("complex64", ("coil", "sample"), "arbitrary"),
    "trajectory": ("float32", ("sample", "kz ky kx"), "cycles per field of view"),
    "maps": ("complex64", ("coil", "z", "y", "x"), "1"),
    "reference": ("complex64", ("z", "y", "x"), "arbitrary"),
    "field_map": ("float32", ("z", "y", "x"), "Hz"),
    "times": ("float32", ("sample",), "s"),
}
ARRAYS = tuple(_LAYOUT)
_OPTIONAL = ("reference", "field_map", "times")


def write_scan_file(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], voxel_size: Sequence[float]
) -> None:
    """Write arrays in the layout of this module; an existing file is replaced only once the new one is whole.

    Parameters
    ----------
    path
        Where to write, by custom with the ending ``.h5``.
    arrays
        ``kspace``, ``trajectory``, ``maps`` and, where there are any, ``reference``, ``field_map`` and ``times``.
    voxel_size
        ``(z, y, x)`` in mm.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    with written_beside(path) as part, h5py.File(part, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, voxel_size=np.array(voxel_size, np.float64))
        file.attrs["voxel_size_axes"], file.attrs["voxel_size_unit"] = "z y x", "mm"
        for name, (dtype, axes, unit) in _LAYOUT.items():
            if name in arrays:
                # noise does not compress; trajectory, maps and reference do
                packed = {} if name == "kspace" else {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                dataset = file.create_dataset(name, data=np.asarray(arrays[name], dtype), **packed)
                dataset.attrs["axes"], dataset.attrs["unit"] = ", ".join(axes), unit


def read_scan_file(
    path: str | os.PathLike[str], group: Group = ALONE
) -> tuple[dict[str, NDArray[Any]], tuple[float, ...]]:
    """Read the arrays and the voxel size (z, y, x) in mm of a file in the layout of this module.

    Parameters
    ----------
    path
        The file.
    group
        The processes that share the coils: of k-space and maps only this one's are read.

    Returns
    -------
    tuple
        The arrays by name, and the voxel size.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If the file is cut short, is not HDF5, or does not have the layout.
    """
    path = check_is_file(path)
    with open_hdf5(path) as file:
        datasets = find_datasets(file, path)
        fit = len(datasets["kspace"]) == len(datasets["maps"])  # or else the scan will say so
        own = group.share(len(datasets["maps"])) if group.size > 1 and fit else slice(None)
        arrays = {name: _read(dataset, name, path, own) for name, dataset in datasets.items()}
        return arrays, read_voxel_size(file, path)


def _read(dataset: h5py.Dataset, name: str, path: Path, coils: slice) -> NDArray[Any]:
    """Return a dataset, of some coils alone if it has any: of none, one of zeros."""
    dtype, axes, _ = _LAYOUT[name]
    if "coil" not in axes or coils == slice(None):
        return np.ascontiguousarray(read_dataset(dataset, name, path), dtype)
    if coils.start == coils.stop and len(dataset):
        return np.zeros((1, *dataset.shape[1:]), dtype)
    return np.ascontiguousarray(read_dataset(dataset, name, path, coils), dtype)


def find_datasets(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """Return the datasets of a file in the layout of this module by name, none of them read yet, or raise."""
    layout, version = plain(read_attribute(file, "format")), plain(read_attribute(file, "version"))
    if not np.array_equal(layout, FORMAT):
        raise ScanFileError(
            f"'{path}' is HDF5, but its attribute format is {layout!r}, expected {FORMAT}. Only files in the layout "
            "that scan.save(path) writes can be read so; for others there are bk.load_ismrmrd and bk.load_arrays."
        )
    if not np.array_equal(version, VERSION):
        raise ScanFileError(
            f"'{path}' has layout version {version!r}, expected {VERSION}. "
            "Read it with the version of blockkit that wrote it."
        )
    found = {}
    for name, (dtype, axes, _) in _LAYOUT.items():
        dataset = find(file, name)
        if dataset is None and name in _OPTIONAL:
            continue
        if not isinstance(dataset, h5py.Dataset):
            raise ScanFileError(
                f"'{path}' has no dataset '{name}'. It has: {printable(', '.join(sorted(file))) or 'none'}."
            )
        if dataset.dtype.newbyteorder("=") != np.dtype(dtype):
            raise ScanFileError(f"'{path}': {name} has dtype {dataset.dtype}, expected {dtype}.")
        if dataset.ndim != len(axes):
            raise ScanFileError(f"'{path}': {name} has shape {dataset.shape}, expected ({', '.join(axes)}).")
        found[name] = dataset
    return found


def read_voxel_size(file: h5py.File, path: Path) -> tuple[float, ...]:
    """Return the voxel size (z, y, x) in mm of an open file, or raise."""
    try:
        return tuple(float(v) for v in np.ravel(read_attribute(file, "voxel_size")))
    except (KeyError, TypeError, ValueError):
        raise ScanFileError(f"'{path}' has no attribute voxel_size of three numbers (z, y, x) in mm.") from None


def save_nifti(
    path: str | os.PathLike[str], image: Tensor, voxel_size: Sequence[float], *, kind: str = "magnitude"
) -> None:
    """Write an image as NIfTI, for other programs to show.

    The file's axes are x, y, z. Its affine takes z as head to feet, y as front to back, x as the patient's right to
    left, as in :func:`pulmonary_phantom`, and puts voxel ``n // 2`` of each axis at 0 mm.

    Parameters
    ----------
    path
        Where to write; ends in ``.nii`` or ``.nii.gz``. A file that is there is replaced once the new one is whole.
    image
        Complex, shape ``(z, y, x)``.
    voxel_size
        ``(z, y, x)`` in mm.
    kind
        ``"magnitude"`` writes float32, which every viewer reads; ``"complex"`` writes complex64.

    Raises
    ------
    ValueError
        If the shape, the voxel size, the ending or ``kind`` is not one of these, or a value is not finite.
    TypeError
        If ``image`` is not a complex tensor.
    FileNotFoundError
        If the folder does not exist.

    References
    ----------
    .. [1] Cox et al., "A (sort of) new image data format standard: NIfTI-1", NeuroImage 22:e1440, 2004.

    Examples
    --------
    >>> bk.save_nifti("image.nii.gz", scan.reference, scan.voxel_size)
    >>> import nibabel
    >>> nibabel.load("image.nii.gz").shape  # x, y, z
    (16, 12, 16)
    """
    check_volume(image, "image")
    if kind not in ("magnitude", "complex"):
        raise ValueError(f"kind is {kind!r}, expected 'magnitude' or 'complex'.")
    if not str(path).endswith((".nii", ".nii.gz")):
        raise ValueError(f"path is '{path}', expected one that ends in .nii or .nii.gz.")
    sizes = check_voxel_size(voxel_size)
    image = image.detach().cpu().resolve_conj().resolve_neg().to(torch.complex64)
    values = (image.abs() if kind == "magnitude" else image).numpy().transpose(2, 1, 0)
    step = -np.array(sizes[::-1])  # NIfTI's x, y, z grow to the right, the front and the head: all against ours
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -step * (np.array(values.shape) // 2)
    nifti: Any = nibabel.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, code="scanner")
    nifti.set_qform(affine, code="scanner")
    with written_beside(path) as part:
        nibabel.save(nifti, part)
