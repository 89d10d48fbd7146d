"""ISMRMRD (MRD 1), the vendors' common raw format: HDF5 with an XML header and one record for each readout.

It is read by h5py, many readouts at a time and heads before data: each head is checked, and all that they promise is
held against the size of the file, before anything of that size is allocated.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.data.files import ScanFileError, printable
from blockkit.data.hdf5 import check_stored, find, open_hdf5, read_dataset
from blockkit.data.ismrmrd_header import (
    COUNTERS,
    HEAD,
    LONGEST,
    NOISE,
    NOT_IMAGING,
    Header,
    has_flag,
    parse_header,
)
from blockkit.data.raw import RawScan, as_volume, named_in_errors
from blockkit.data.units import check_unit, standard_trajectory

AT_ONCE, _BYTES_AT_ONCE = 1024, 2**26  # readouts, and their bytes
MAPS = "csm"


def load_ismrmrd(
    path: str | os.PathLike[str],
    *,
    trajectory: Tensor | None = None,
    image_shape: Sequence[int] | None = None,
    unit: str | None = None,
    columns: str = "kx ky kz",
    select: Mapping[str, int | Sequence[int]] | None = None,
) -> RawScan:
    """Read a non-Cartesian scan from an ISMRMRD file.

    Readouts flagged as noise are kept apart, and those flagged as navigator, calibration alone, phase correction,
    dummy and the like left out. Samples that a head says to discard are. The image's axes are readout, phase and slice
    direction for x, y and z; where these point in the patient is not kept.

    Parameters
    ----------
    path
        The file.
    trajectory
        Real, shape ``(sample, 3)``, columns kz ky kx, or ``(sample, 2)``, ky kx, for the samples that are kept: instead
        of the one in the file, or because there is none.
    image_shape
        ``(z, y, x)`` of the image that is wanted, over the field of view of the header's reconstructed space. None
        takes the header's.
    unit
        That of the trajectory, which ISMRMRD does not define, as :func:`~blockkit.data.units.standard_trajectory` has
        them, over the encoded space; of a ``trajectory`` that is given, over the image. None takes what the header
        says, or cycles/FOV if the numbers look like it.
    columns
        What the columns of the file's trajectory are. Some files hold density weights in the third: ``"kx ky -"``.
    select
        Which readouts to take by their counters, such as ``{"contrast": 0, "slice": 3}`` or ``{"set": [0, 1]}``.
        Counters that mean another image (slice, contrast, phase, repetition, set) must have one value, unless named.

    Returns
    -------
    RawScan
        With all arrays in memory, and the maps if the file has them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If the file is damaged, lacks something, or holds what does not fit together; the message names the field.

    Examples
    --------
    >>> bk.save_ismrmrd("scan.mrd", scan)
    >>> raw = bk.load_ismrmrd("scan.mrd")
    >>> raw.kspace.shape, raw.image_shape
    (torch.Size([4, 2560]), (16, 12, 16))
    """
    check_unit(unit)
    with open_hdf5(path) as file, named_in_errors(path):
        source = Path(path)
        group = find_group(file, source)
        header = read_header(group, source)
        table = find_acquisitions(group, source)
        heads = read_heads(table)
        imaging = choose_readouts(heads, select or {})
        check_promises(heads, source)
        shape = header.recon.matrix if image_shape is None else as_volume(image_shape)
        n_coils = int(heads["active_channels"][imaging[0]])
        kspace, points = _read_readouts(table, heads, imaging, n_coils, want_points=trajectory is None)
        if trajectory is None:
            k = _from_file(points, columns.split(), header, shape, unit)
        else:
            k = _from_caller(trajectory, kspace.shape[1], shape, unit)
        lengths = n_kept(heads)[imaging]
        z, y, x = (fov / n for fov, n in zip(header.recon.fov, shape, strict=True))
        return RawScan(
            torch.from_numpy(kspace),
            k,
            shape,
            (z, y, x),
            noise=_read_noise(table, heads, n_coils),
            n_readout=int(lengths[0]) if (lengths == lengths[0]).all() else None,
            maps=_read_maps(group, source, (n_coils, *shape)),
        )


def find_group(file: h5py.File, path: Path) -> h5py.Group:
    """Return the group of an open file that holds acquisitions, or raise."""
    groups = [group for name in file if isinstance(group := find(file, name), h5py.Group) and "data" in group]
    if len(groups) != 1:
        held = "none" if not groups else printable(", ".join(group.name for group in groups))
        raise ScanFileError(f"'{path}': expected one group with the acquisitions of ISMRMRD ('dataset'), found {held}.")
    return groups[0]


def read_header(group: h5py.Group, path: Path) -> Header:
    """Return what is needed of the XML header of a group, or raise."""
    xml = find(group, "xml")
    if not isinstance(xml, h5py.Dataset) or xml.size != 1:
        raise ScanFileError(f"'{path}': {printable(group.name)} has no XML header, a dataset 'xml' of one text.")
    text = np.ravel(read_dataset(xml, "xml", path))[0]
    if not isinstance(text, bytes | str):
        raise ScanFileError(f"'{path}': xml has dtype {xml.dtype}, expected one text.")
    with named_in_errors(path):
        return parse_header((text if isinstance(text, bytes) else text.encode())[: LONGEST + 1])


def find_acquisitions(group: h5py.Group, path: Path) -> h5py.Dataset:
    """Return the dataset of acquisitions, its dtype and length checked and nothing read, or raise."""
    table, where = find(group, "data"), printable(group.name) + "/data"
    if not isinstance(table, h5py.Dataset) or table.dtype.names is None or table.ndim != 1 or not table.shape[0]:
        raise ScanFileError(f"'{path}': {where} is not a list of acquisitions of ISMRMRD.")
    head = table.dtype["head"] if "head" in table.dtype.names else np.dtype("f4")
    missing = [name for name in HEAD.names or () if name not in (head.names or ())]
    kinds = {"traj", "data"} & set(table.dtype.names)
    wrong = [name for name in sorted(kinds) if h5py.check_vlen_dtype(table.dtype[name]) != np.dtype("<f4")]
    if missing or wrong or len(kinds) < 2:
        said = ", ".join((*missing, *wrong)) or "traj and data"
        raise ScanFileError(f"'{path}': {where} is not a list of acquisitions of ISMRMRD: see {said}.")
    check_stored(table, where, path)
    return table


def read_heads(table: h5py.Dataset, most: int | None = None) -> NDArray[Any]:
    """Return the heads of all acquisitions, or of the first ``most``, without their data."""
    n = table.shape[0] if most is None else min(most, table.shape[0])
    heads = np.empty(n, HEAD)
    for start in range(0, n, AT_ONCE):
        some = table.fields("head")[start : min(start + AT_ONCE, n)]
        for name in HEAD.names or ():
            heads[name][start : start + len(some)] = some[name]
    return heads


def is_imaging(heads: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which acquisitions belong to the image."""
    return np.asarray(~has_flag(heads["flags"], NOISE, *NOT_IMAGING))


def choose_readouts(heads: NDArray[Any], select: Mapping[str, int | Sequence[int]]) -> NDArray[np.intp]:
    """Return the numbers of the imaging acquisitions that are selected, or raise where that is no one image."""
    counters = heads["idx"]
    names = [name for name in counters.dtype.names or () if name != "user"]
    chosen = is_imaging(heads)
    for name, values in select.items():
        if name not in names:
            raise ValueError(f"select names {name!r}, expected one of {', '.join(names)}.")
        chosen &= np.isin(counters[name], np.atleast_1d(values))
    if not chosen.any():
        raise ValueError(
            f"none of {len(heads)} acquisitions is part of an image" + f" with {dict(select)}." * bool(select)
        )
    for name in COUNTERS:
        found = np.unique(counters[name][chosen]).tolist()
        if name not in select and len(found) > 1:
            few = ", ".join(map(str, found[:8])) + ", ..." * (len(found) > 8)
            raise ValueError(
                f"the acquisitions belong to {len(found)} images: the counter {name} has the values {few}. Choose one "
                f"by select={{'{name}': {found[0]}}}, or put all together by "
                f"select={{'{name}': range({found[-1] + 1})}}."
            )
    numbers = np.flatnonzero(chosen)
    for name in ("active_channels", "trajectory_dimensions", "encoding_space_ref"):
        found = np.unique(heads[name][numbers]).tolist()
        if len(found) > 1:
            raise ValueError(f"the acquisitions differ in {name}, which has the values {found[:8]}.")
    if not heads["active_channels"][numbers[0]] or (n_kept(heads)[numbers] < 1).any():
        raise ValueError("an acquisition has no samples: see number_of_samples, discard_pre and active_channels.")
    return numbers


def n_kept(heads: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many samples of each acquisition are kept."""
    n, pre, post = (heads[name].astype(np.int64) for name in ("number_of_samples", "discard_pre", "discard_post"))
    return np.asarray(n - pre - post)


def check_promises(heads: NDArray[Any], path: Path) -> None:
    """Raise if the heads promise more numbers than the file has bytes for."""
    n = heads["number_of_samples"].astype(np.int64)
    numbers = int((n * (2 * heads["active_channels"].astype(np.int64) + heads["trajectory_dimensions"])).sum())
    if 4 * numbers > path.stat().st_size:
        raise ScanFileError(
            f"'{path}': the heads of data promise {4 * numbers} bytes (number_of_samples, active_channels), and the "
            f"file has {path.stat().st_size}: it is damaged or cut short."
        )


def _parts(table: h5py.Dataset, wanted: NDArray[np.intp], n_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield the wanted acquisitions, of up to ``n_bytes`` each, with their numbers, reading many at a time."""
    at_once = max(1, min(AT_ONCE, _BYTES_AT_ONCE // max(1, n_bytes)))
    for start in range(0, table.shape[0], at_once):
        some = wanted[(wanted >= start) & (wanted < start + at_once)]
        if some.size:
            first, last = int(some[0]), int(some[-1])
            records = table[first : last + 1]
            for number in some:
                yield int(number), records[number - first]


def _read_readouts(
    table: h5py.Dataset, heads: NDArray[Any], wanted: NDArray[np.intp], n_coils: int, *, want_points: bool
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Return the samples (coil, sample) and the trajectory (sample, column) of the wanted acquisitions."""
    kept = n_kept(heads)
    n_columns = int(heads["trajectory_dimensions"][wanted[0]]) if want_points else 0
    if want_points and n_columns < 2:
        raise ValueError(
            f"the acquisitions hold no trajectory: trajectory_dimensions is {n_columns}. Pass trajectory=, shape "
            "(sample, 3), columns kz ky kx in cycles/FOV."
        )
    total = int(kept[wanted].sum())
    samples, points = np.empty((n_coils, total), np.complex64), np.empty((total, n_columns), np.float32)
    at = 0
    for number, record in _parts(table, wanted, 8 * n_coils * int(heads["number_of_samples"].max())):
        n, pre = int(heads["number_of_samples"][number]), int(heads["discard_pre"][number])
        keep, here = slice(pre, pre + int(kept[number])), slice(at, at + int(kept[number]))
        at = here.stop
        for name, size in (("data", 2 * n_coils * n), ("traj", n_columns * n)):
            if size and record[name].size != size:
                raise ValueError(f"acquisition {number} has {record[name].size} numbers in {name}, expected {size}.")
        samples[:, here] = np.ascontiguousarray(record["data"], "<f4").view("<c8").reshape(n_coils, n)[:, keep]
        if n_columns:
            points[here] = record["traj"].reshape(n, n_columns)[keep]
    return samples, points


def _read_noise(table: h5py.Dataset, heads: NDArray[Any], n_coils: int) -> Tensor | None:
    noisy = has_flag(heads["flags"], NOISE) & (heads["active_channels"] == n_coils) & (n_kept(heads) > 0)
    wanted = np.flatnonzero(noisy)
    if not wanted.size:
        return None
    return torch.from_numpy(_read_readouts(table, heads, wanted, n_coils, want_points=False)[0])


def _from_file(
    points: NDArray[np.float32],
    columns: Sequence[str],
    header: Header,
    image_shape: tuple[int, int, int],
    unit: str | None,
) -> Tensor:
    """Return the file's trajectory in cycles over the reconstructed field of view."""
    unit = unit or header.unit
    check_unit(unit)
    k = standard_trajectory(points, columns, header.encoded.matrix, unit).double()
    ratio = [recon / encoded for recon, encoded in zip(header.recon.fov, header.encoded.fov, strict=True)]
    return standard_trajectory((k * torch.tensor(ratio)).numpy(), ("kz", "ky", "kx"), image_shape, "cycles/FOV")


def _from_caller(trajectory: Tensor, n_samples: int, image_shape: tuple[int, int, int], unit: str | None) -> Tensor:
    if trajectory.ndim != 2 or trajectory.shape[1] not in (2, 3) or trajectory.shape[0] != n_samples:
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}, expected ({n_samples}, 3), columns kz ky kx: one row for "
            "each sample that is kept."
        )
    columns = ("kz", "ky", "kx")[3 - trajectory.shape[1] :]
    return standard_trajectory(trajectory.detach().cpu().numpy(), columns, image_shape, unit)


def _read_maps(group: h5py.Group, path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the array ``csm`` if there is one and it fits."""
    maps = find(group, MAPS)
    if not isinstance(maps, h5py.Dataset) or maps.shape != (1, *shape) or maps.dtype.names != ("real", "imag"):
        return None
    pairs = read_dataset(maps, MAPS, path)[0]
    values = np.empty(shape, np.complex64)
    values.real, values.imag = pairs["real"], pairs["imag"]
    return torch.from_numpy(values)
