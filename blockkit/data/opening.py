"""From a file to a scan that can be reconstructed: which format it is, and coil maps where it has none."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py

from blockkit.checks import check_count
from blockkit.data.files import ScanFileError, check_is_file
from blockkit.data.formats import FORMAT
from blockkit.data.hdf5 import find, open_hdf5, plain, read_attribute
from blockkit.data.ismrmrd import load_ismrmrd
from blockkit.data.raw import RawScan, named_in_errors
from blockkit.data.scan import Scan, load_scan
from blockkit.physics.calibration import estimate_maps
from blockkit.physics.channels import compress_coils, mix_coils, prewhiten

HDF5_SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")

Opener = Callable[[Path], Scan]


def make_scan(raw: RawScan, *, n_coils: int | None = None) -> Scan:
    """Make a raw scan ready to reconstruct: prewhitened, with fewer coils if wanted, and with coil maps.

    Each step is a function of its own: :func:`prewhiten` if ``raw`` has noise, :func:`compress_coils` if ``n_coils`` is
    less than it has, and :func:`estimate_maps` by ESPIRiT if it has no maps. Maps that it has go the way of the coils.

    Parameters
    ----------
    raw
        What :func:`load_ismrmrd`, :func:`load_cfl` or :func:`load_arrays` gave.
    n_coils
        How many virtual coils to keep at most. None: all.

    Returns
    -------
    Scan
        K-space in units of the noise's standard deviation if there is noise, in its own otherwise; no reference.

    Raises
    ------
    ValueError
        If the noise or the center of k-space does not serve; the message says what is wrong.

    Examples
    --------
    >>> noise = torch.randn_like(scan.kspace)
    >>> raw = bk.RawScan(scan.kspace, scan.trajectory, scan.image_shape, scan.voxel_size, noise=noise)
    >>> bk.make_scan(raw, n_coils=2).maps.shape
    torch.Size([2, 16, 12, 16])
    """
    most = raw.n_coils if n_coils is None else check_count(n_coils, "n_coils")
    kspace, maps = raw.kspace, raw.maps
    if raw.noise is not None:
        kspace, matrix = prewhiten(kspace, raw.noise)
        maps = None if maps is None else mix_coils(matrix, maps)
    if most < raw.n_coils:
        kspace, matrix = compress_coils(kspace, most)
        maps = None if maps is None else mix_coils(matrix, maps)
    if maps is None:
        maps = estimate_maps(kspace, raw.trajectory, raw.image_shape)
    return Scan(kspace, raw.trajectory, maps, raw.voxel_size)


def open_scan(path: str | os.PathLike[str], *, n_coils: int | None = None) -> Scan:
    """Read a scan from a file that says all that is needed: the project's HDF5, or ISMRMRD with a trajectory.

    Parameters
    ----------
    path
        The file. One in the project's own HDF5 is read as it is; one in ISMRMRD is made a scan by :func:`make_scan`.
    n_coils
        How many virtual coils to keep at most. None: all.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If it is damaged, lacks something, or is in a format that does not say what its axes or voxels are.

    Examples
    --------
    >>> bk.save_ismrmrd("scan.mrd", scan)
    >>> bk.open_scan("scan.mrd", n_coils=2).kspace.shape
    torch.Size([2, 2560])
    """
    kind = kind_of(path)
    if kind == "blockkit":
        scan = load_scan(path)
        if n_coils is None or check_count(n_coils, "n_coils") >= scan.n_coils:
            return scan
        kspace, matrix = compress_coils(scan.kspace, n_coils)
        return replace(scan, kspace=kspace, maps=mix_coils(matrix, scan.maps))
    check_says_all(path, kind)
    with named_in_errors(path):
        return make_scan(load_ismrmrd(path), n_coils=n_coils)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the format of a file: ``"blockkit"``, ``"ISMRMRD"``, ``"BART"``, ``"NIfTI"``, or else ``"arrays"``."""
    path = Path(path)
    if path.is_dir():
        return "arrays"
    if path.suffix in (".cfl", ".hdr") or path.with_name(path.name + ".hdr").is_file():
        return "BART"
    check_is_file(path)
    if path.name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if not h5py.is_hdf5(path):
        if path.suffix.lower() in HDF5_SUFFIXES:
            raise ScanFileError(f"'{path}' is not an HDF5 file, or has lost its beginning. Copy or save it again.")
        return "arrays"
    with open_hdf5(path, values=False) as file:
        if plain(read_attribute(file, "format")) == FORMAT:
            return "blockkit"
        groups = [find(file, name) for name in file]
        raw = any(isinstance(group, h5py.Group) and {"xml", "data"} <= set(group) for group in groups)
        return "ISMRMRD" if raw else "arrays"


def check_says_all(path: str | os.PathLike[str], kind: str) -> None:
    """Raise unless a file of this kind says all that a scan needs."""
    if kind == "NIfTI":
        raise ScanFileError(f"'{path}' is an image in NIfTI, expected a scan: k-space and where it was sampled.")
    if kind in ("BART", "arrays"):
        function = "bk.load_cfl" if kind == "BART" else "bk.load_arrays"
        raise ScanFileError(
            f"'{path}' does not say what its axes and voxels are, expected a scan in the project's HDF5 or ISMRMRD. "
            f"Read it with {function} and write it once: bk.make_scan(raw).save(path)."
        )
