"""Read HDF5 files that may be damaged, or lie: what is promised is compared with what the file can hold first.

A dataset's shape is a promise in its header. Before anything of that size is allocated, its bytes are held against
those that the file stores for it, and these against the size of the file. Links to other files are not followed. And
since damaged bytes can crash the HDF5 library, hold it in a loop, or make it ask for gigabytes, each file is tried in a
process of its own first (:mod:`blockkit.data.probe`), of limited time and memory, on Linux with glibc's check of the
heap. What remains: beyond 1 GiB only the directory is tried, not the values; and elsewhere a write past the library's
memory that does not crash at once is not seen.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from blockkit.data import probe
from blockkit.data.files import ScanFileError, check_is_file, printable
from blockkit.data.probe import read_attribute as read_attribute

_WALL_SECONDS = 300  # where a process cannot be limited in processor time
# Damaged bytes can make the HDF5 library write past its memory without a crash, which then comes much later: glibc's
# own check ends the process at once. Where there is no such library, the loader goes on without it.
_HEAP_CHECK = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"} if sys.platform == "linux" else {}

_TOO_SLOW = -getattr(signal, "SIGPROF", 0)
_KILLED_BY = (
    "reading it crashes the HDF5 library or takes it for ever (the process that tried ended with {}). "
    "Its bytes cannot be right"
)


@contextmanager
def open_hdf5(path: str | os.PathLike[str], *, values: bool = True) -> Iterator[h5py.File]:
    """Open an HDF5 file to read; whatever damaged bytes raise inside becomes one error that names the file.

    Parameters
    ----------
    path
        The file.
    values
        Whether the values will be read too: then they are tried first, as the directory always is.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If it is not HDF5, is cut short or damaged.
    """
    path = check_is_file(path)
    if not h5py.is_hdf5(path):
        raise ScanFileError(f"'{path}' is not an HDF5 file. Expected one written by scan.save(path), or ISMRMRD.")
    said = _prober.ask(path, values)
    if said is not None:
        raise _damaged(path, said)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ScanFileError:
        raise
    except (*probe.FAILURES, MemoryError) as error:
        raise _damaged(path, printable(error) or type(error).__name__) from error


def _damaged(path: Path, said: str) -> ScanFileError:
    return ScanFileError(
        f"'{path}' is damaged or cut short ({path.stat().st_size} bytes): {said}. Copy or save it again."
    )


def find(group: h5py.Group, name: str) -> h5py.Dataset | h5py.Group | None:
    """Return the member of a group, or None if there is none; a link to another file counts as none."""
    link = group.get(name, getlink=True)
    if link is None or isinstance(link, h5py.ExternalLink):
        return None
    member = group.get(name)
    return member if isinstance(member, h5py.Dataset | h5py.Group) else None


def read_dataset(dataset: h5py.Dataset, name: str, path: Path, rows: slice = slice(None)) -> NDArray[Any]:
    """Return a dataset, or some rows of it, as an array, or raise if the file cannot hold what it promises."""
    check_stored(dataset, name, path)
    return np.asarray(dataset[()] if rows == slice(None) else dataset[rows])


def check_stored(dataset: h5py.Dataset, name: str, path: Path) -> None:
    """Raise if the file cannot hold what the dataset promises."""
    why = probe.why_not_stored(dataset, path.stat().st_size)
    if why is not None:
        raise ScanFileError(f"'{path}': {name} {why}.")


def plain(attribute: Any) -> Any:
    """Return an attribute without what languages differ in: text for bytes, the element for an array of one."""
    value = np.asarray(attribute)
    value = value.item() if value.size == 1 else value
    return value.decode(errors="replace").rstrip("\0 ") if isinstance(value, bytes) else value


class _Prober:
    """The process that tries files; one, started at the first file, and anew after one has killed it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._slow: tuple[int, ...] | None = None  # the file that last took too long, and need not be tried again
        self._lock = threading.Lock()

    def ask(self, path: Path, values: bool) -> str | None:
        """Return why a file cannot be read, or None if it can, or if no process can be started to try it."""
        with self._lock:
            found = path.stat()
            this = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if this == self._slow:
                return _KILLED_BY.format(_TOO_SLOW)
            try:
                process = self._start()
                requests, answers = _pipes(process)
                requests.write(json.dumps([str(path.absolute()), values]) + "\n")
                requests.flush()
            except OSError:
                self._end()
                return None
            clock = threading.Timer(_WALL_SECONDS, process.kill)
            if sys.platform == "win32":
                clock.start()
            answer = answers.readline()
            clock.cancel()
            if answer:
                said = json.loads(answer)
                return None if said is None else str(said)
            code = process.wait()
            self._slow = this if code == _TOO_SLOW else None
            self._end()
        return _KILLED_BY.format(code)

    def _start(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():  # after a fork: the process is the parent's
            self._process, self._owner = None, os.getpid()
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", probe.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, **_HEAP_CHECK},
            )
            if not _pipes(self._process)[1].readline():
                raise OSError("the process did not start")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(OSError):
                    pipe.close()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise OSError("the process has no pipes")
    return process.stdin, process.stdout


_prober = _Prober()
atexit.register(_prober._end)
