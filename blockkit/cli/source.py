"""The scan that a command is given: a file that says all, or one of which the command line says the rest."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blockkit.cli.shared import ZYX
from blockkit.data.arrays import load_arrays
from blockkit.data.cfl import load_cfl
from blockkit.data.heads import ScanHead, read_head
from blockkit.data.ismrmrd import load_ismrmrd
from blockkit.data.opening import check_says_all, kind_of, make_scan, open_scan
from blockkit.data.raw import RawScan
from blockkit.data.scan import Scan
from blockkit.data.units import UNITS

PARTS = ("kspace", "trajectory", "maps", "noise")
# What the command line may say of each kind of file.
MAY_SAY = {
    "blockkit": (),
    "ISMRMRD": ("image_shape", "unit"),
    "BART": ("parts", "voxel_size", "image_shape", "unit"),
    "arrays": ("parts", "voxel_size", "image_shape", "unit"),
}
SAYS = ("parts", "voxel_size", "image_shape", "unit")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the file, and what is said of one that does not say it itself."""
    parser.add_argument("file", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument(
        "--with",
        dest="parts",
        nargs="+",
        metavar=("PART=WHAT", "..."),
        help=".cfl: trajectory=FILE maps=FILE noise=FILE; arrays: as in bk.load_arrays, "
        "kspace='NAME: coil spoke readout' trajectory='NAME: spoke readout (kx ky kz)'",
    )
    parser.add_argument("--voxel-size", type=float, nargs=3, metavar=ZYX, help="in mm: of .cfl and arrays")
    parser.add_argument("--image-shape", type=int, nargs=3, metavar=ZYX, help="voxels wanted: of raw files")
    parser.add_argument("--unit", choices=UNITS, metavar="U", help=f"of a raw trajectory: {', '.join(UNITS)}")
    parser.add_argument("--n-coils", type=int, metavar="N", help="compress the coils to so many")


def open_source(args: argparse.Namespace) -> Scan:
    """Return the scan of ``args.file``: a raw one is prewhitened, and its maps are estimated where it has none."""
    if _kind(args) == "blockkit":
        return open_scan(args.file, n_coils=args.n_coils)
    return make_scan(_open_raw(args), n_coils=args.n_coils)


def open_path(
    path: Path,
    *,
    parts: Sequence[str] | None = None,
    voxel_size: Sequence[float] | None = None,
    image_shape: Sequence[int] | None = None,
    unit: str | None = None,
    n_coils: int | None = None,
) -> Scan:
    """Return the scan of a file, with what the command line says of all files of a folder."""
    said = {"parts": parts, "voxel_size": voxel_size, "image_shape": image_shape, "unit": unit, "n_coils": n_coils}
    return open_source(argparse.Namespace(file=path, **said))


def look_at_source(args: argparse.Namespace) -> ScanHead:
    """Return the sizes of the scan of ``args.file``, of HDF5 and ISMRMRD without reading it whole."""
    kind = _kind(args)
    if kind in ("blockkit", "ISMRMRD") and args.image_shape is None and args.unit is None:
        head = read_head(args.file)
    else:
        raw = _open_raw(args)
        head = ScanHead(raw.image_shape, raw.n_coils, raw.n_samples, raw.voxel_size)
    n_coils = head.n_coils if args.n_coils is None else min(args.n_coils, head.n_coils)
    return replace(head, n_coils=n_coils)


def _kind(args: argparse.Namespace) -> str:
    """Return the format of the file, or raise where the command line says what that format does not need."""
    kind = kind_of(args.file)
    if kind == "NIfTI":
        check_says_all(args.file, kind)
    for name in SAYS:
        if getattr(args, name) is not None and name not in MAY_SAY[kind]:
            option = "--with" if name == "parts" else "--" + name.replace("_", "-")
            raise ValueError(f"'{args.file}' is a {kind} file, which says that itself: leave {option} out.")
    return kind


def _open_raw(args: argparse.Namespace) -> RawScan:
    kind, path, parts = _kind(args), args.file, _parse(args.parts or ())
    options = {"image_shape": args.image_shape, "unit": args.unit}
    if kind == "ISMRMRD":
        return load_ismrmrd(path, **options)
    if args.voxel_size is None:
        raise ValueError(f"'{path}' does not say how large a voxel is: add --voxel-size Z Y X, in mm.")
    if kind == "BART":
        kspace, trajectory, maps, noise = _cfl_files(path, parts)
        return load_cfl(kspace, trajectory, maps, noise=noise, voxel_size=args.voxel_size, **options)
    if not {"kspace", "trajectory"} <= set(parts):
        raise ValueError(
            f"'{path}' does not say which array is what: add --with kspace='NAME: coil spoke readout' "
            "trajectory='NAME: spoke readout (kx ky kz)', with the axes that they have."
        )
    return load_arrays(path, parts, voxel_size=args.voxel_size, **options)


def _parse(words: list[str] | tuple[str, ...]) -> dict[str, str]:
    parts = {}
    for word in words:
        name, equals, what = word.partition("=")
        if name not in PARTS or not equals or not what or name in parts:
            raise ValueError(f"--with has {word!r}, expected NAME=WHAT once for each NAME of {', '.join(PARTS)}.")
        parts[name] = what
    return parts


def _cfl_files(path: Path, parts: dict[str, str]) -> tuple[str, str, str | None, str | None]:
    """Return k-space, trajectory, maps and noise: the files named, or beside ``x_kspace`` those named alike."""
    base = str(path).removesuffix(".cfl").removesuffix(".hdr")
    stem = base.removesuffix("_kspace")
    found: list[str | None] = []
    for name in PARTS[1:]:
        beside = f"{stem}_{name}" if stem != base and Path(f"{stem}_{name}.hdr").is_file() else None
        found.append(parts.get(name, beside))
    trajectory, maps, noise = found
    if trajectory is None:
        raise ValueError(f"'{path}' does not say where it was sampled: add --with trajectory=FILE.")
    return parts.get("kspace", base), trajectory, maps, noise
