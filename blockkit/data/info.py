"""Say what is in a file of any format, and what is missing to reconstruct it, without reading it whole."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from blockkit.data.array_files import Stored, find_arrays, open_arrays
from blockkit.data.cfl import read_header as read_cfl_header
from blockkit.data.files import ScanFileError, check_is_file, printable
from blockkit.data.formats import FORMAT, find_datasets, read_voxel_size
from blockkit.data.hdf5 import check_stored, find, open_hdf5, plain, read_attribute
from blockkit.data.ismrmrd import MAPS, find_acquisitions, find_group, is_imaging, read_header, read_heads
from blockkit.data.ismrmrd_header import COUNTERS, NOISE, has_flag
from blockkit.data.probe import N_RECORDS
from blockkit.data.scan import load_scan
from blockkit.data.units import UNITS, looks_like

CHECKED_BYTES = 2**26  # a scan file up to this size is read whole, so that a NaN in it is found
_POINTS = 2**18  # numbers of a trajectory that are looked at


def describe_file(path: str | os.PathLike[str]) -> str:
    """Say what a file holds: shapes, axes, units, bytes, and what is missing to reconstruct it.

    Parameters
    ----------
    path
        A scan in the project's HDF5, ISMRMRD, BART's ``.cfl`` and ``.hdr``, ``.npy``, ``.npz``, ``.mat`` or other HDF5,
        a folder of ``.npy`` files, or an image in NIfTI. Of a large file only headers and a few values are read.

    Returns
    -------
    str
        A few lines.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If it is damaged, or in none of these formats.
    """
    path = Path(path)
    is_pair = not path.is_dir() and path.with_name(path.name + ".hdr").is_file()  # BART's own way to name a pair
    if path.suffix in (".cfl", ".hdr") or is_pair:
        lines = _cfl(path)
    elif path.is_dir():
        lines = _arrays(path)
    elif path.name.endswith((".nii", ".nii.gz")):
        lines = _nifti(check_is_file(path))
    elif h5py.is_hdf5(check_is_file(path)):
        with open_hdf5(path, values=_is_read(path)) as file:
            lines = _kind(file)(file, path)
    else:
        lines = _arrays(path)
    return "\n".join((str(path), *lines))


def _kind(file: h5py.File) -> Callable[[h5py.File, Path], list[str]]:
    if plain(read_attribute(file, "format")) == FORMAT:
        return _scan
    groups = [find(file, name) for name in file]
    if any(isinstance(group, h5py.Group) and {"xml", "data"} <= set(group) for group in groups):
        return _ismrmrd
    return lambda file, path: _arrays_lines(find_arrays(file, path), path)


def _is_read(path: Path) -> bool:
    """Return whether values may be read: a folder's arrays are, one by one, if they are small."""
    return path.is_dir() or path.stat().st_size <= CHECKED_BYTES


def _scan(file: h5py.File, path: Path) -> list[str]:
    datasets = find_datasets(file, path)
    for name, dataset in datasets.items():
        check_stored(dataset, name, path)
    voxel = read_voxel_size(file, path)
    small = _is_read(path)
    if small:
        load_scan(path)
    meanings = {
        "kspace": "(coil, sample), arbitrary unit",
        "trajectory": "(sample, 3), columns kz ky kx, cycles/FOV",
        "maps": "(coil, z, y, x), no unit",
        "reference": "(z, y, x), to compare with",
        "field_map": "(z, y, x), off-resonance in Hz",
        "times": "(sample,), when each was read out, in s",
    }
    lines = []
    for name, meaning in meanings.items():
        if name in datasets:
            lines.append(_line(name, datasets[name].shape, datasets[name].dtype, meaning))
        elif name == "reference":
            lines.append(f"  {name:<11} missing: images can be made, but not compared")
    image_shape = datasets["maps"].shape[1:]
    lines.append(_voxel_line(image_shape, voxel))
    points = datasets["trajectory"][: _POINTS // 3]
    looked = "" if len(points) == datasets["trajectory"].shape[0] else f" in the first {len(points)} samples"
    furthest = ", ".join(f"{float(k):.4g}" for k in np.abs(points).max(axis=0))
    half = ", ".join(f"{n / 2:g}" for n in image_shape)
    lines.append(f"  sampled to  {furthest} cycles/FOV (kz, ky, kx){looked}; the image reaches {half}")
    return lines if small else [*lines, "  values      not looked at for NaN: the file is large"]


def _ismrmrd(file: h5py.File, path: Path) -> list[str]:
    group = find_group(file, path)
    header, table = read_header(group, path), find_acquisitions(group, path)
    heads = read_heads(table, N_RECORDS)
    imaging, noise = is_imaging(heads), has_flag(heads["flags"], NOISE)
    chosen = heads[imaging]
    looked = "" if len(heads) == table.shape[0] else f", of which the first {len(heads)} were looked at:"
    lines = [
        f"  ISMRMRD     {table.shape[0]} acquisitions{looked} {len(chosen)} of the image, {int(noise.sum())} of noise, "
        f"{int((~imaging & ~noise).sum())} others",
        f"  readouts    {_values(chosen['active_channels'])} coils, {_values(chosen['number_of_samples'])} samples",
        f"  header      {header.n_encodings} encodings, trajectory {header.trajectory!r}, encoded matrix "
        f"(z, y, x) = {header.encoded.matrix} over {_by(header.encoded.fov)} mm",
        _voxel_line(header.recon.matrix, [f / n for f, n in zip(header.recon.fov, header.recon.matrix, strict=True)]),
    ]
    for name in COUNTERS:
        if len(np.unique(chosen["idx"][name])) > 1:
            lines.append(f"  {name:<11} {_values(chosen['idx'][name])}: choose by select={{'{name}': ...}}")
    n_columns = int(chosen["trajectory_dimensions"].max(initial=0))
    if n_columns:
        number = len(heads) - 1 if imaging[-1] else 0  # those that were tried when the file was opened
        largest = float(np.abs(table[number]["traj"]).max(initial=0)) if imaging[number] else None
        unit = header.unit if header.unit in UNITS else "unit not said"
        reach = "" if largest is None else f"; readout {number} reaches {largest:.4g}"
        lines.append(f"  trajectory  {n_columns} columns, {unit}{reach}")
    else:
        lines.append("  trajectory  missing: pass trajectory=, (sample, 3), columns kz ky kx, cycles/FOV")
    if not noise.any():
        lines.append("  noise       missing: images can be made, without prewhitening")
    if find(group, MAPS) is None:
        lines.append("  maps        missing: estimate them, then raw.with_maps(maps)")
    return [*lines, f"  to read it  bk.load_ismrmrd({str(path)!r})"]


def _cfl(path: Path) -> list[str]:
    dims = read_cfl_header(path)
    base = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    readout = f"{dims[1]} samples x {dims[2]} spokes"
    beside = _beside(base)
    missing = ["trajectory"]
    if dims[0] == 3 and dims[3] == 1:
        with (base.with_name(base.name + ".cfl")).open("rb") as file:
            points = np.fromfile(file, "<c8", min(_POINTS // 3 * 3, int(np.prod(dims)))).real.reshape(-1, 3)
        furthest = ", ".join(f"{float(k):.4g}" for k in np.abs(points).max(axis=0))
        kind = f"trajectory: {readout}, reaches {furthest} (kx, ky, kz) in the first {len(points)}"
        missing = ["k-space"]
    elif dims[0] == 1 and dims[1] > 1:
        kind = f"k-space of a non-Cartesian scan: {readout}, {dims[3]} coils"
    else:
        z, y, x = dims[2::-1]
        kind, missing = f"image or maps: (z, y, x) = {(z, y, x)}, {dims[3]} coils", ["k-space", "trajectory"]
    missing = [] if beside else [f"{', '.join(missing)} (other files)"]
    shape = dims[: max((i for i, n in enumerate(dims) if n > 1), default=0) + 1]
    return [
        _line("BART", shape, np.dtype("c8"), "fastest first"),
        f"  likely      {kind}",
        f"  missing     {', '.join((*missing, 'voxel size'))}",
        f"  to read it  bk.load_cfl({beside or 'kspace, trajectory, maps'}, voxel_size=(z, y, x))",
    ]


def _beside(base: Path) -> str:
    """Return the arguments with which load_cfl reads the set that a file of BART belongs to, by their names."""
    stem, _, kind = str(base).rpartition("_")
    there = {name: f"{stem}_{name}" for name in ("kspace", "trajectory", "maps", "noise")}
    there = {name: path for name, path in there.items() if Path(f"{path}.hdr").is_file()}
    if kind not in there or not {"kspace", "trajectory"} <= set(there):
        return ""
    return ", ".join(f"{name}={path!r}" if name in ("maps", "noise") else repr(path) for name, path in there.items())


def _arrays(path: Path) -> list[str]:
    with open_arrays(path, values=_is_read(path)) as stored:
        return _arrays_lines(stored, path)


def _arrays_lines(stored: Mapping[str, Stored], path: Path) -> list[str]:
    if not stored:
        raise ScanFileError(f"'{path}' holds no array of numbers.")
    lines = []
    for name, one in sorted(stored.items()):
        meaning = "axes not said" if one.shape or one.dtype.kind == "c" else f"{float(one.read()):g}"
        lines.append(_line(name, one.shape, one.dtype, meaning))
    return [*lines, "  missing     what the axes are, voxel size", *_suggest(stored, path, _is_read(path))]


def _suggest(stored: Mapping[str, Stored], path: Path, small: bool) -> list[str]:
    """Return the call that reads arrays, as well as it can be guessed."""
    real = {name: one for name, one in stored.items() if one.dtype.kind == "f"}
    points = min((name for name, one in real.items() if _column_axis(one) is not None), default="")
    names = _sample_axes(stored[points], small) if points else {}
    fitting = {n: _kspace_axes(one.shape, names) for n, one in stored.items() if one.dtype.kind == "c"}
    kspace = min(fitting, key=lambda name: (not fitting[name], name), default="NAME")
    columns, unit, order = "kx ky kz", "", " ".join(names) or "spoke readout"
    if points:
        one, at = stored[points], _column_axis(stored[points])
        columns = " ".join(("kx", "ky", "kz")[: one.shape[at or 0]])
        order = f"({columns}) {order}" if at == 0 else f"{order} ({columns})"
        seen = looks_like(float(np.abs(one.read()).max())) if small and _is_small(one) else None
        unit = f", image_shape=(z, y, x), unit={seen!r}" if seen else ""
    else:
        order += " (kx ky kz)"
    return [
        f"  to read it  bk.load_arrays({str(path)!r},",
        f"              {{'kspace': '{kspace}: {fitting.get(kspace) or 'coil spoke readout'}',",
        f"               'trajectory': '{points or 'NAME'}: {order}'}},",
        f"              voxel_size=(z, y, x){unit}), with the axes that they have",
    ]


def _column_axis(one: Stored) -> int | None:
    """Return the axis of an array that may be the columns of a trajectory: the last or the first."""
    axes = [at for at in (len(one.shape) - 1, 0) if len(one.shape) > 1 and one.shape[at] in (2, 3)]
    return axes[0] if axes else None


def _is_small(one: Stored) -> bool:
    return 0 < math.prod(one.shape) <= _POINTS


def _sample_axes(one: Stored, small: bool) -> dict[str, int]:
    """Return names and sizes of the axes of a trajectory that count samples: along a readout k moves least."""
    at = _column_axis(one)
    sizes = [n for axis, n in enumerate(one.shape) if axis != at]
    if len(sizes) != 2:
        return {"sample": sizes[0]} if len(sizes) == 1 else {}
    names = ["spoke", "readout"]
    if small and _is_small(one) and min(sizes) > 1:
        k = np.moveaxis(one.read().astype(np.float64), at or 0, -1)
        with np.errstate(all="ignore"):  # infinite numbers are the reader's to refuse
            steps = [float(np.abs(np.diff(k, axis=axis)).mean()) for axis in (0, 1)]
        names = names[:: -1 if steps[0] < steps[1] else 1]
    return dict(zip(names, sizes, strict=True))


def _kspace_axes(shape: Sequence[int], names: Mapping[str, int]) -> str:
    """Name the axes of k-space by their sizes, or return nothing if it has not those of the trajectory."""
    left, found = dict(names), []
    for n in reversed(shape):
        same = [name for name, size in left.items() if size == n]
        found.append(same[-1] if same else "coil")
        left.pop(found[-1], None)
    return "" if left or not names or found.count("coil") > 1 else " ".join(reversed(found))


def _nifti(path: Path) -> list[str]:
    try:
        with _quiet(nibabel.imageglobals.logger):  # what it says of bad headers beside its errors
            image: Any = nibabel.load(path)
        shape, dtype, sizes = image.shape, image.get_data_dtype(), image.header.get_zooms()
        way = "".join(str(code) for code in nibabel.aff2axcodes(image.affine))  # type: ignore[no-untyped-call]
    except Exception as error:  # nibabel raises many kinds on bad bytes
        raise ScanFileError(f"'{path}' is no NIfTI image, or damaged: {printable(error)}.") from error
    return [
        _line("image", shape, dtype, "(x, y, z)"),
        f"  voxel       {_by(sizes[::-1])} mm (z, y, x), axes point to {way}",
        "  missing     k-space and trajectory: an image, not a scan",
    ]


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _line(name: str, shape: Sequence[int], dtype: np.dtype[Any], meaning: str) -> str:
    size = float(np.prod([float(n) for n in shape])) * dtype.itemsize / 2**20
    return f"  {name:<11} {tuple(int(n) for n in shape)}  {dtype}  {size:.1f} MiB  {meaning}"


def _voxel_line(image_shape: Sequence[int], voxel: Sequence[float]) -> str:
    extent = _by([n * size for n, size in zip(image_shape, voxel, strict=True)])
    return f"  voxel       {_by(voxel)} mm (z, y, x), field of view {extent} mm, image {tuple(image_shape)}"


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _values(values: Any) -> str:
    found = np.unique(values)
    return ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "") or "no"
