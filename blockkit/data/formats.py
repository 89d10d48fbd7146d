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
============  =========  ====================  ==============================================

Complex numbers are compounds of two float32, ``r`` and ``i``. Each dataset says its axes and unit in attributes.
Any byte order will do, and for the attributes strings of fixed or variable length and arrays of one element.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import check_complex, check_finite, check_tensor

FORMAT, VERSION = "blockkit-scan", 1

_LAYOUT = {
    "kspace": ("complex64", ("coil", "sample"), "arbitrary"),
    "trajectory": ("float32", ("sample", "kz ky kx"), "cycles per field of view"),
    "maps": ("complex64", ("coil", "z", "y", "x"), "1"),
    "reference": ("complex64", ("z", "y", "x"), "arbitrary"),
}
_OPTIONAL = ("reference",)


class ScanFileError(ValueError):
    """A scan file that cannot be read; the message says why."""


def write_scan_file(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], voxel_size: Sequence[float]
) -> None:
    """Write arrays in the layout of this module; an existing file is replaced only once the new one is whole.

    Parameters
    ----------
    path
        Where to write, by custom with the ending ``.h5``.
    arrays
        ``kspace``, ``trajectory``, ``maps`` and, if there is one, ``reference``.
    voxel_size
        ``(z, y, x)`` in mm.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    with _written_beside(path) as part, h5py.File(part, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, voxel_size=np.array(voxel_size, np.float64))
        file.attrs["voxel_size_axes"], file.attrs["voxel_size_unit"] = "z y x", "mm"
        for name, (dtype, axes, unit) in _LAYOUT.items():
            if name in arrays:
                # noise does not compress; trajectory, maps and reference do
                packed = {} if name == "kspace" else {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                dataset = file.create_dataset(name, data=np.asarray(arrays[name], dtype), **packed)
                dataset.attrs["axes"], dataset.attrs["unit"] = ", ".join(axes), unit


def read_scan_file(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], tuple[float, ...]]:
    """Read the arrays and the voxel size (z, y, x) in mm of a file in the layout of this module.

    Parameters
    ----------
    path
        The file.

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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no scan file '{path}'. Folder searched: '{path.absolute().parent}'.")
    if not h5py.is_hdf5(path):
        raise ScanFileError(f"'{path}' is not an HDF5 file. Expected one written by scan.save(path).")
    try:
        with h5py.File(path, "r") as file:
            return _read_arrays(file, path), _read_voxel_size(file, path)
    except ScanFileError:
        raise
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:  # all that h5py raises on bad bytes
        raise ScanFileError(
            f"'{path}' is damaged or cut short ({path.stat().st_size} bytes): {error}. Copy or save it again."
        ) from error


def _read_arrays(file: h5py.File, path: Path) -> dict[str, NDArray[Any]]:
    layout, version = _plain(file.attrs.get("format")), _plain(file.attrs.get("version"))
    if not np.array_equal(layout, FORMAT):
        raise ScanFileError(
            f"'{path}' is HDF5, but its attribute format is {layout}, expected {FORMAT}. "
            "Only files in the layout that scan.save(path) writes can be read."
        )
    if not np.array_equal(version, VERSION):
        raise ScanFileError(
            f"'{path}' has layout version {version}, expected {VERSION}. "
            "Read it with the version of blockkit that wrote it."
        )
    arrays = {}
    for name, (dtype, axes, _) in _LAYOUT.items():
        dataset = file.get(name)
        if dataset is None and name in _OPTIONAL:
            continue
        if not isinstance(dataset, h5py.Dataset):
            raise ScanFileError(f"'{path}' has no dataset '{name}'. It has: {', '.join(sorted(file)) or 'none'}.")
        if dataset.dtype.newbyteorder("=") != np.dtype(dtype):
            raise ScanFileError(f"'{path}': {name} has dtype {dataset.dtype}, expected {dtype}.")
        if dataset.ndim != len(axes):
            raise ScanFileError(f"'{path}': {name} has shape {dataset.shape}, expected ({', '.join(axes)}).")
        arrays[name] = np.ascontiguousarray(dataset[()], dtype)
    return arrays


def _plain(attribute: Any) -> Any:
    """Return an attribute without what languages differ in: text for bytes, the element for an array of one."""
    value = np.asarray(attribute)
    value = value.item() if value.size == 1 else value
    return value.decode(errors="replace").rstrip("\0 ") if isinstance(value, bytes) else value


def _read_voxel_size(file: h5py.File, path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in np.ravel(file.attrs["voxel_size"]))
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
    """
    check_tensor(image, "image")
    check_complex(image, "image")
    if image.ndim != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (z, y, x). For one slice, pass image[None].")
    check_finite(image, "image")
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
    with _written_beside(path) as part:
        nibabel.save(nifti, part)


def check_voxel_size(voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """Return three positive sizes (z, y, x) in mm, or raise."""
    try:
        z, y, x = (float(v) for v in voxel_size)
    except (TypeError, ValueError):
        z = y = x = -1.0
    if not all(0 < v < float("inf") for v in (z, y, x)):
        raise ValueError(f"voxel_size is {voxel_size}, expected three positive numbers (z, y, x) in mm.")
    return z, y, x


@contextmanager
def _written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; move it to ``path`` if all went well, else remove it."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}' to write '{path.name}' in. Make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder, expected the name of a file.")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        os.replace(part, path)
