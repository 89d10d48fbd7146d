"""BART's files: a header ``name.hdr`` that holds the dimensions, and ``name.cfl`` with complex64 numbers.

BART counts dimensions from the fastest: 0 to 2 are readout, phase encodings (or x, y, z), 3 is the coil. So an array
read in C order has them reversed, which is what this package uses: maps are ``(coil, z, y, x)`` as they lie there.
K-space of a non-Cartesian scan is ``1, readout, spoke, coil``; a trajectory ``3, readout, spoke`` with kx ky kz in
cycles/FOV.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import Shape3
from blockkit.data.files import ScanFileError, check_is_file, check_voxel_size, written_together
from blockkit.data.raw import RawScan, as_raw, as_volume, named_in_errors
from blockkit.data.scan import Scan
from blockkit.data.units import check_unit, smallest_shape, standard_trajectory

N_DIMS = 16
COIL, MAPS = 3, 4
_LONGEST_HEADER = 2**20


def load_cfl(
    kspace: str | os.PathLike[str],
    trajectory: str | os.PathLike[str],
    maps: str | os.PathLike[str] | None = None,
    *,
    voxel_size: Sequence[float],
    image_shape: Sequence[int] | None = None,
    noise: str | os.PathLike[str] | None = None,
    unit: str | None = None,
) -> RawScan:
    """Read a non-Cartesian scan from BART's files.

    Parameters
    ----------
    kspace
        The file, with ``.cfl``, ``.hdr`` or neither; dimensions ``1, readout, spoke, coil``. What else varies, such
        as time, counts as more spokes.
    trajectory
        Dimensions ``3, readout, spoke``, kx ky kz. A dimension that k-space has and the trajectory lacks is an error.
    maps
        Coil maps, dimensions ``x, y, z, coil``, or None.
    voxel_size
        ``(z, y, x)`` in mm, which BART's files do not hold.
    image_shape
        ``(z, y, x)`` of the image that is wanted. None takes that of ``maps``, or else the smallest even one that holds
        the trajectory.
    noise
        Samples without signal, with the same coils, or None.
    unit
        That of the trajectory, as :func:`~blockkit.data.units.standard_trajectory` has them. None takes BART's own,
        cycles/FOV, and raises if the numbers do not look like it.

    Returns
    -------
    RawScan
        With all arrays in memory.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ScanFileError
        If a file is damaged, or the arrays do not fit together.

    Examples
    --------
    >>> paths = bk.save_cfl("scan", scan)  # scan_kspace, scan_trajectory, scan_maps
    >>> raw = bk.load_cfl(*paths, voxel_size=scan.voxel_size)
    >>> raw.kspace.shape, raw.maps.shape
    (torch.Size([4, 2560]), torch.Size([4, 16, 12, 16]))
    """
    check_unit(unit)
    voxel = check_voxel_size(voxel_size)
    samples = read_cfl(kspace)
    if samples.shape[-1] > 1:
        raise ScanFileError(
            f"'{_base(kspace)}' has dimensions {_dims(samples)}, expected 1, readout, spoke, coil: the first is 1 in a "
            "non-Cartesian scan. For a Cartesian one, write where it was sampled as a trajectory first."
        )
    points = _read_points(trajectory)
    known_maps = None if maps is None else _read_maps(maps)
    with named_in_errors(_base(trajectory)):
        shape = _choose_shape(image_shape, known_maps, points, unit)
        columns = _check_same(samples, points).reshape(-1, points.shape[-1])
        k = standard_trajectory(columns, ("kx", "ky", "kz"), shape, unit)
    with named_in_errors(_base(kspace)):
        return RawScan(
            torch.from_numpy(_coil_first(samples)),
            k,
            shape,
            voxel,
            noise=None if noise is None else torch.from_numpy(_coil_first(read_cfl(noise))),
            n_readout=samples.shape[-2],
            maps=known_maps,
        )


def save_cfl(path: str | os.PathLike[str], scan: Scan | RawScan) -> list[Path]:
    """Write BART's files ``path_kspace``, ``path_trajectory`` and, where known, ``path_maps`` and ``path_noise``.

    Each is a pair of ``.cfl`` and ``.hdr``, which ``bart nufft`` and ``bart pics -t`` take. What BART's files do not
    hold is lost: the voxel size, the reference, a field map. Files that are there are replaced once all new ones are
    whole; a run that is killed while they are leaves some without a header, which no one reads, and no mixture of old
    and new.

    Parameters
    ----------
    path
        Folder and beginning of the names.
    scan
        What to write.

    Returns
    -------
    list of Path
        The names without ending, as BART wants them.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.

    Examples
    --------
    >>> [str(path) for path in bk.save_cfl("scan", scan)]
    ['scan_kspace', 'scan_trajectory', 'scan_maps']
    """
    raw = as_raw(scan)
    readout = (raw.n_readout or raw.n_samples, -1)
    arrays = {
        "kspace": raw.kspace.reshape(raw.n_coils, -1, readout[0], 1),
        "trajectory": raw.trajectory.flip(1).reshape(-1, readout[0], 3).to(torch.complex64),
        "maps": raw.maps,
        "noise": None if raw.noise is None else raw.noise.reshape(raw.n_coils, 1, -1, 1),
    }
    known = {f"{os.fspath(path)}_{name}": values for name, values in arrays.items() if values is not None}
    _write_pairs(known)
    return list(map(Path, known))


def read_header(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the 16 dimensions of a cfl file, fastest first, once the file's size is known to be theirs.

    Raises
    ------
    FileNotFoundError
        If ``.hdr`` or ``.cfl`` is missing.
    ScanFileError
        If the header has no dimensions, or the numbers are more or fewer than they say.
    """
    base = _base(path)
    header, data = check_is_file(f"{base}.hdr", "header"), check_is_file(f"{base}.cfl", "file")
    with header.open("rb") as file:
        text = file.read(_LONGEST_HEADER)
    lines = [line.strip() for line in text.decode("utf-8", errors="replace").splitlines()]
    at = lines.index("# Dimensions") + 1 if "# Dimensions" in lines else len(lines)
    words = lines[at].split() if at < len(lines) else []
    if not words or len(words) > N_DIMS or not all(w.isascii() and w.isdigit() and len(w) < 20 for w in words):
        raise ScanFileError(f"'{header}' has no line of at most {N_DIMS} whole numbers after '# Dimensions'.")
    dims = tuple(int(word) for word in words)
    dims += (1,) * (N_DIMS - len(dims))
    expected, size = 8 * math.prod(dims), data.stat().st_size
    if min(dims) < 1 or expected != size:
        raise ScanFileError(
            f"'{header}' says dimensions {_short(dims)}, which is {expected} bytes, and '{data.name}' has {size}. "
            "Copy both files again."
        )
    return dims


def read_cfl(path: str | os.PathLike[str]) -> NDArray[np.complex64]:
    """Return a cfl file as complex64 with its 16 dimensions slowest first: ``array[..., coil, z, y, x]``."""
    dims = read_header(path)
    values = np.fromfile(f"{_base(path)}.cfl", "<c8", math.prod(dims))
    if values.size != math.prod(dims):
        raise ScanFileError(f"'{_base(path)}.cfl' was cut short while it was read.")
    return values.reshape(dims[::-1])


def write_cfl(path: str | os.PathLike[str], values: Tensor) -> None:
    """Write a tensor, slowest axis first, as complex64 with those dimensions fastest first."""
    _write_pairs({_base(path): values})


def _write_pairs(arrays: Mapping[str, Tensor]) -> None:
    """Write tensors by their names without ending, all or none."""
    with written_together([f"{base}.cfl" for base in arrays], [f"{base}.hdr" for base in arrays]) as folder:
        for base, values in arrays.items():
            beside = folder / Path(base).name
            numbers = values.detach().cpu().resolve_conj().resolve_neg().to(torch.complex64).numpy()
            np.ascontiguousarray(numbers, "<c8").tofile(f"{beside}.cfl")
            dims = (*numbers.shape[::-1], *(1,) * (N_DIMS - numbers.ndim))
            lines = ("# Dimensions", " ".join(map(str, dims)) + " ", "# Creator", "blockkit", "")
            Path(f"{beside}.hdr").write_text("\n".join(lines), encoding="ascii")


def _base(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).removesuffix(".cfl").removesuffix(".hdr")


def _dims(array: NDArray[Any]) -> str:
    return _short(array.shape[::-1])


def _short(dims: Sequence[int]) -> str:
    """Write dimensions without the ones at the end."""
    last = max((i for i, n in enumerate(dims) if n != 1), default=0)
    return ", ".join(map(str, dims[: last + 1]))


def _read_points(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Return a trajectory with its dimensions slowest first and kx ky kz as the last axis."""
    points = read_cfl(path)
    if points.shape[-1] not in (2, 3) or points.shape[-1 - COIL] > 1:
        raise ScanFileError(f"'{_base(path)}' has dimensions {_dims(points)}, expected 3, readout, spoke: kx ky kz.")
    largest = float(np.abs(points.real).max(initial=0))
    if float(np.abs(points.imag).max(initial=0)) > 1e-4 * max(largest, 1e-30):
        raise ScanFileError(f"'{_base(path)}' is complex, expected a trajectory: real numbers. Is it k-space?")
    return points.real


def _check_same(samples: NDArray[Any], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the trajectory, or raise where it has not the dimensions that k-space has, coil aside."""
    at = N_DIMS - 1 - COIL
    if (*samples.shape[:at], *samples.shape[at + 1 : -1]) != (*points.shape[:at], *points.shape[at + 1 : -1]):
        raise ValueError(
            f"k-space has dimensions {_dims(samples)} and the trajectory {_dims(points)}: expected the same, but for "
            "1 and 3 in front and the coils, which is dimension 3."
        )
    return points


def _coil_first(samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    coils = np.moveaxis(samples, N_DIMS - 1 - COIL, 0)
    return np.ascontiguousarray(coils.reshape(len(coils), -1))


def _read_maps(path: str | os.PathLike[str]) -> Tensor:
    maps = read_cfl(path)
    if math.prod(maps.shape[: N_DIMS - 1 - COIL]) > 1:
        several = maps.shape[N_DIMS - 1 - MAPS]
        hint = f" It has {several} sets: take the first by 'bart slice {MAPS} 0'." if several > 1 else ""
        raise ScanFileError(f"'{_base(path)}' has dimensions {_dims(maps)}, expected x, y, z, coil.{hint}")
    return torch.from_numpy(np.ascontiguousarray(maps.reshape(maps.shape[N_DIMS - 1 - COIL :])))


def _choose_shape(
    image_shape: Sequence[int] | None, maps: Tensor | None, points: NDArray[np.float32], unit: str | None
) -> Shape3:
    if image_shape is not None:
        return as_volume(image_shape)
    if maps is not None:
        _, z, y, x = maps.shape
        return z, y, x
    flat = points.reshape(-1, points.shape[-1])[:, ::-1]
    return smallest_shape(np.pad(flat, ((0, 0), (3 - flat.shape[1], 0))), unit)
