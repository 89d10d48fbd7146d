"""What every file format here shares: the error, and writing beside the target and renaming."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class ScanFileError(ValueError):
    """A scan file that cannot be read; the message says why."""


def printable(text: object) -> str:
    """Return a text from a file on one line, with what would move or color a terminal escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))


def counted(n: int, what: str) -> str:
    """Return a number of things in words: 1 scan, 2 scans."""
    return f"{n} {what}{'s' * (n != 1)}"


def check_is_file(path: str | os.PathLike[str], kind: str = "scan file") -> Path:
    """Return ``path`` as a Path if it is a file, or raise FileNotFoundError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} '{path}'. Folder searched: '{path.absolute().parent}'.")
    return path


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; move it to ``path`` if all went well, else remove it."""
    with written_together([path]) as folder:
        yield folder / Path(path).name


@contextmanager
def written_together(
    paths: Sequence[str | os.PathLike[str]], headers: Sequence[str | os.PathLike[str]] = ()
) -> Iterator[Path]:
    """Give a temporary folder for files of one folder, to be written by their names; move all if all went well.

    ``headers`` are files without which the others are not read. Old ones go before any file is moved, and new ones
    come last: a run that is killed in between leaves files without a header, which is seen, and none with the header
    of another.
    """
    targets = [Path(path) for path in (*paths, *headers)]
    parent = targets[0].parent
    if not parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{parent}' to write '{targets[0].name}' in. Make it first.")
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"'{target}' is a folder, expected the name of a file.")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent) as name:
        folder = Path(name)
        yield folder
        aside: list[Path] = []
        moved = 0
        try:
            for header in map(Path, headers):
                if header.exists():
                    os.replace(header, folder / f"old-{header.name}")
                    aside.append(header)
            for target in targets:
                os.replace(folder / target.name, target)
                moved += 1
        finally:
            for header in aside if not moved else ():
                os.replace(folder / f"old-{header.name}", header)


def check_voxel_size(voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """Return three positive sizes (z, y, x) in mm, or raise."""
    try:
        z, y, x = (float(v) for v in voxel_size)
    except (TypeError, ValueError):
        z = y = x = -1.0
    if not all(0 < v < float("inf") for v in (z, y, x)):
        raise ValueError(f"voxel_size is {voxel_size}, expected three positive numbers (z, y, x) in mm.")
    return z, y, x
