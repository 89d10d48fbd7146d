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
def written_beside(path: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; move it to ``path`` if all went well, else remove it.

    ``others`` are files of the same folder that belong to it, such as a header: the block writes them beside the
    temporary path, by their own names, and they are moved after it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}' to write '{path.name}' in. Make it first.")
    targets = [path, *map(Path, others)]
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"'{target}' is a folder, expected the name of a file.")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        yield Path(folder) / path.name
        for target in targets:
            os.replace(Path(folder) / target.name, target)


def check_voxel_size(voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """Return three positive sizes (z, y, x) in mm, or raise."""
    try:
        z, y, x = (float(v) for v in voxel_size)
    except (TypeError, ValueError):
        z = y = x = -1.0
    if not all(0 < v < float("inf") for v in (z, y, x)):
        raise ValueError(f"voxel_size is {voxel_size}, expected three positive numbers (z, y, x) in mm.")
    return z, y, x
