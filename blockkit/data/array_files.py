"""Files that hold named arrays: what is in them is known without reading it, and nothing in them is run.

Before an array is read, its promised size is held against the bytes that the file has for it. NumPy's files are read
without pickles, which could run code; HDF5 does not follow links to other files.
"""

import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from blockkit.data.files import ScanFileError, check_is_file, printable
from blockkit.data.hdf5 import open_hdf5, plain, read_attribute, read_dataset
from blockkit.data.mat5 import find_variables, is_mat5, read_variable
from blockkit.data.probe import members

_MOST_FILES = 1000
_MOST_PACKED = 1100  # deflate packs at most 1032 bytes into one
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PAIRS = ({"real", "imag"}, {"r", "i"})


@dataclass(frozen=True)
class Stored:
    """An array that lies in a file, and how to read it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


@contextmanager
def open_arrays(path: str | os.PathLike[str], *, values: bool = True) -> Iterator[dict[str, Stored]]:
    """Give the arrays of a file, or of the ``.npy`` files in a folder, by name; ``values`` tells they will be read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If it is none of these formats, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        yield {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))[:_MOST_FILES]}
        return
    check_is_file(path)
    if h5py.is_hdf5(path):
        with open_hdf5(path, values=values) as file:
            yield find_arrays(file, path)
    elif is_mat5(path):
        found = find_variables(path)
        yield {name: Stored(v.shape, v.dtype, partial(read_variable, path, name, v)) for name, v in found.items()}
    elif zipfile.is_zipfile(path):
        yield _npz(path)
    elif is_npy(path):
        yield {path.stem: _npy(path)}
    else:
        raise ScanFileError(f"'{path}' is none of .npz, .npy, .mat (version 5 or later) and HDF5, or is cut short.")


def is_npy(path: Path) -> bool:
    """Return whether a file begins as one of NumPy."""
    with path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _npy(path: Path) -> Stored:
    with path.open("rb") as file:
        shape, fortran, dtype = _read_header(file, path, path.name)
        offset = file.tell()
    expected, size = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
    if expected != size:
        raise ScanFileError(
            f"'{path}' has shape {shape} and dtype {dtype}, which is {expected} bytes, and {size} follow its header: "
            "it is damaged or cut short."
        )

    def read() -> NDArray[Any]:
        with path.open("rb") as file:
            file.seek(offset)
            return _as_array(file.read(size), shape, dtype, fortran)

    return Stored(shape, dtype, read)


def _npz(path: Path) -> dict[str, Stored]:
    found = {}
    with _zip(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                found[printable(info.filename.removesuffix(".npy"))] = _member(archive, info, path)
    return found


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Stored:
    name = printable(info.filename.removesuffix(".npy"))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ScanFileError(f"'{path}': {name} is packed in a way that NumPy does not use.")
    most = min(info.compress_size, path.stat().st_size) * (_MOST_PACKED if info.compress_type else 1) + 64
    with archive.open(info) as file:
        shape, fortran, dtype = _read_header(file, path, name)
        offset = file.tell()
    expected = math.prod(shape) * dtype.itemsize
    if offset + expected != info.file_size or info.file_size > most:
        raise ScanFileError(
            f"'{path}': {name} has shape {shape} and dtype {dtype}, which is {expected} bytes, and the file holds "
            f"{info.file_size - offset} in {info.compress_size} packed ones: it is damaged."
        )

    def read() -> NDArray[Any]:
        with _zip(path) as archive, archive.open(info) as file:
            return _as_array(file.read(info.file_size)[offset:], shape, dtype, fortran)

    return Stored(shape, dtype, read)


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ScanFileError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as error:
        raise ScanFileError(f"'{path}' is damaged or cut short: {printable(error)}. Copy or save it again.") from error


def _read_header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the text of a header that is read as Python's literals
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ScanFileError(f"'{path}': {name} has NumPy's version {version}, expected (1, 0) or (2, 0).")
            shape, fortran, dtype = _HEADERS[version](file)
    except ScanFileError:
        raise
    except Exception as error:  # the text is parsed as Python's literals: any of the parser's errors
        said = printable(error) or type(error).__name__
        raise ScanFileError(f"'{path}': {name} has a header that cannot be read: {said}.") from error
    if dtype.kind not in "cfiu" or any(n < 0 for n in shape):
        raise ScanFileError(f"'{path}': {name} has shape {shape} and dtype {dtype}, expected an array of numbers.")
    return shape, fortran, dtype


def _as_array(content: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> NDArray[Any]:
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} was cut short while it was read.")
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return values.astype(dtype.newbyteorder("="))


def find_arrays(file: h5py.File, path: Path) -> dict[str, Stored]:
    """Return the arrays of numbers of an open HDF5 file by name."""
    found = {}
    for member in members(file):
        if isinstance(member, h5py.Dataset) and member.shape is not None and not member.name.startswith("/#"):
            pair = set(member.dtype.names or ()) in _PAIRS
            if pair or member.dtype.kind in "cfiu":
                # MATLAB writes its axes fastest first
                matlab = isinstance(plain(read_attribute(member, "MATLAB_class")), str)
                shape = member.shape[::-1] if matlab else member.shape
                dtype = np.dtype("c16" if member.dtype.itemsize > 8 else "c8") if pair else member.dtype
                read = partial(_read_hdf5, member, path, transposed=matlab)
                found[printable(member.name).lstrip("/")] = Stored(shape, dtype, read)
    return found


def _read_hdf5(dataset: h5py.Dataset, path: Path, *, transposed: bool) -> NDArray[Any]:
    values = read_dataset(dataset, printable(dataset.name).lstrip("/"), path)
    if values.dtype.names:
        real, imag = (values[part] for part in sorted(values.dtype.names, reverse=True))  # r before i
        values = np.empty(real.shape, np.result_type(real, np.complex64))
        values.real, values.imag = real, imag
    values = values.astype(values.dtype.newbyteorder("="))
    return values.T if transposed else values
