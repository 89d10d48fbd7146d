"""MATLAB's files of version 5 to 7: what is in them, and their numbers, read by scipy once their sizes are checked.

A file is a row of elements, each a tag (type, bytes) and its content, possibly deflated. scipy allocates what a tag
says; so each tag is held against the bytes that are there, and a deflated element against what deflate can pack.
"""

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from blockkit.data.files import ScanFileError, printable

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # of a number, by the type of the element
_MOST_PACKED = 1100  # deflate packs at most 1032 bytes into one
_PEEK = 4096


@dataclass(frozen=True)
class Variable:
    """A variable of numbers: where its element lies, and what it says."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int  # of the element's content in the file
    n_bytes: int
    compressed: bool


def is_mat5(path: Path) -> bool:
    """Return whether a file begins as one of MATLAB 5 to 7."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
    return len(start) == _HEADER and start.startswith(b"MATLAB 5.0") and start[126:] in (b"IM", b"MI")


def find_variables(path: Path) -> dict[str, Variable]:
    """Return the variables of numbers by name, reading no more than their headers.

    Raises
    ------
    ScanFileError
        If an element promises more than the file can hold.
    """
    with path.open("rb") as file:
        return dict(_walk(file, path))


def read_variable(path: Path, name: str, variable: Variable) -> NDArray[np.generic]:
    """Return a variable's numbers in MATLAB's order of axes."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
        order = _order(start)
        file.seek(variable.offset)
        content = file.read(variable.n_bytes)
    most = 16 * math.prod(variable.shape) + 2**16  # 16 bytes hold the largest complex number
    element = _inflate(content, most, path, name) if variable.compressed else content
    skip = 8 if variable.compressed else 0
    _check_parts(element[skip:], order, path, name)
    tag = np.array([_MATRIX, len(element) - skip], order + "u4").tobytes()
    try:
        values = loadmat(io.BytesIO(start + tag + element[skip:]), variable_names=[name])[name]
    except Exception as error:  # on bad bytes scipy raises whatever its parsing meets
        raise ScanFileError(f"'{path}': {name} cannot be read: {printable(error)}.") from error
    if not isinstance(values, np.ndarray) or values.shape != variable.shape:
        raise ScanFileError(f"'{path}': {name} is no array of the shape {variable.shape} that its header says.")
    return values


def _walk(file: BinaryIO, path: Path) -> Iterator[tuple[str, Variable]]:
    size, order = path.stat().st_size, _order(file.read(_HEADER))
    at = _HEADER
    while at < size:
        file.seek(at)
        kind, n_bytes = _tag(file.read(8), order, path)
        if n_bytes > size - at - 8:
            raise ScanFileError(
                f"'{path}' is damaged or cut short: at byte {at} it promises {n_bytes} bytes, and has {size - at - 8}."
            )
        peek = file.read(min(n_bytes, _PEEK))
        promised, packed = n_bytes, kind == _COMPRESSED
        if packed:
            peek = _inflate(peek, _PEEK, path, f"the element at byte {at}", whole=False)
            kind, promised = _tag(peek[:8], order, path)
            peek = peek[8:]
            if promised > n_bytes * _MOST_PACKED:
                raise ScanFileError(f"'{path}' promises {promised} bytes in {n_bytes} deflated ones: it is damaged.")
        if kind == _MATRIX:
            yield from _describe(peek, order, path, promised, (at + 8, n_bytes, packed))
        at += 8 + n_bytes


def _describe(
    peek: bytes, order: str, path: Path, promised: int, place: tuple[int, int, bool]
) -> Iterator[tuple[str, Variable]]:
    """Yield name and variable of a matrix element if it holds numbers."""
    parts = list(_parts(peek, order, path, whole=False))
    if len(parts) < 4 or len(parts[0][1]) < 8:
        return
    flags = int(np.frombuffer(parts[0][1], order + "u4", 1)[0])
    kind = _CLASSES.get(flags & 0xFF)
    if kind is None or parts[1][0] != 5 or len(parts[1][1]) % 4:
        return
    shape = tuple(int(n) for n in np.frombuffer(parts[1][1], order + "i4"))
    name = parts[2][1].decode("latin-1")
    if not (name.isascii() and name.isidentifier()):
        raise ScanFileError(f"'{path}': a variable is named {printable(name[:64])!r}: it is damaged.")
    numbers, stored = math.prod(shape), parts[3][2]
    if min(shape, default=-1) < 0 or stored > promised or numbers * _BYTES.get(parts[3][0], 1) != stored:
        raise ScanFileError(
            f"'{path}': {name} has shape {shape} and {stored} bytes of numbers in {promised}: it is damaged."
        )
    dtype = np.dtype(kind)
    if flags >> 8 & 0x08:
        dtype = np.dtype("c8" if kind == "f4" else "c16")
    yield name, Variable(shape, dtype, *place)


def _parts(content: bytes, order: str, path: Path, *, whole: bool) -> Iterator[tuple[int, bytes, int]]:
    """Yield type, content and promised bytes of the elements in a matrix; ``whole`` tells that nothing is cut off."""
    at = 0
    while at + 8 <= len(content):
        word = int(np.frombuffer(content, order + "u4", 1, at)[0])
        if word >> 16:  # a small element: both in one word, the content in the next
            kind, n_bytes, begin, step = word & 0xFFFF, word >> 16, at + 4, 8
            whole_part = n_bytes <= 4
        else:
            kind, n_bytes = _tag(content[at : at + 8], order, path)
            begin, step = at + 8, 8 + -(-n_bytes // 8) * 8
            whole_part = n_bytes <= len(content) - begin
        if whole and not whole_part:
            raise ScanFileError(
                f"'{path}' promises {n_bytes} bytes where {len(content) - begin} are left: it is damaged."
            )
        yield kind, content[begin : begin + n_bytes], n_bytes
        at += step


def _check_parts(content: bytes, order: str, path: Path, name: str) -> None:
    """Raise unless the parts of a matrix have the sizes that its shape asks for: then scipy allocates no more."""
    parts = list(_parts(content, order, path, whole=True))
    if len(parts) < 4:
        raise ScanFileError(f"'{path}': {name} has {len(parts)} parts, expected at least 4: it is damaged.")
    numbers = math.prod(int(n) for n in np.frombuffer(parts[1][1], order + "i4"))
    for kind, part, _ in parts[3:]:
        if kind not in _BYTES or len(part) != numbers * _BYTES[kind]:
            raise ScanFileError(f"'{path}': {name} has {len(part)} bytes for {numbers} numbers: it is damaged.")


def _inflate(content: bytes, most: int, path: Path, name: str, *, whole: bool = True) -> bytes:
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(content, most)
    except zlib.error as error:
        raise ScanFileError(f"'{path}': {name} is damaged or cut short: {error}.") from error
    if whole and not inflater.eof:
        raise ScanFileError(f"'{path}': {name} is damaged or cut short: its deflated bytes do not end.")
    return result


def _order(header: bytes) -> str:
    return "<" if header[126:128] == b"IM" else ">"


def _tag(words: bytes, order: str, path: Path) -> tuple[int, int]:
    if len(words) < 8:
        raise ScanFileError(f"'{path}' is damaged or cut short: it ends within an element.")
    kind, n_bytes = (int(n) for n in np.frombuffer(words, order + "u4", 2))
    return kind, n_bytes
