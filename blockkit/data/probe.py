"""Try an HDF5 file in a process of its own: damaged bytes can crash the HDF5 library or hold it in a loop for ever.

Run as a script, this module is that process: it imports h5py alone, says when it is ready, reads one request a line
from stdin (a path and whether to read the values too) and answers each by one line of JSON. A file that kills it, or
costs it more processor time or memory than its size explains, has killed no one else.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

SECONDS, BYTES_PER_SECOND = 1.0, 2**24  # processor time for a file or dataset: so much, and more as it is larger
_MEMORY, _MEMORY_PER_BYTE = 2**28, 4  # memory beyond what the process has: so much, and more as the file is larger
MOST_BYTES = 2**30  # of values read here; in a larger file only the directory is tried
N_RECORDS = 4096  # of a list in a file whose values are not tried, the first and the last of so many are
_MOST_MEMBERS = 10_000
_MOST_PACKED = {"gzip": 1100, "lzf": 300}  # deflate packs at most 1032 bytes into one
_MOST_BY_PLUGINS = 10_000
_FEW = 2**16  # bytes of an attribute
FAILURES = (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError)  # what h5py raises on bad bytes
_NO_MEMORY = re.compile("memory allocation|allocate memory|(can't|unable to) (re)?allocate", re.IGNORECASE)


def why_not_stored(dataset: h5py.Dataset, file_size: int) -> str | None:
    """Say why the file cannot hold what the dataset promises, before anything of its size is allocated."""
    if dataset.shape is None:
        return "is empty, expected an array"
    if dataset.external or dataset.is_virtual:
        return "lies in another file, expected it in this one: copy it there"
    if not is_sound(dataset.id.get_type()):
        return "has numbers of a type that no computer writes: it is damaged"
    promised = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if stored > file_size:
        return f"claims {stored} bytes, and the file has {file_size}: it is damaged or cut short"
    packed = dataset.id.get_create_plist().get_nfilters() > 0
    most = stored * (_MOST_PACKED.get(dataset.compression, _MOST_BY_PLUGINS) if packed else 1)
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks and stored else 0
    if max(promised, chunk) > most:
        return (
            f"has shape {dataset.shape} and dtype {dataset.dtype}, which is {promised} bytes, and the file stores "
            f"{stored}: it is damaged, or was never written whole"
        )
    return None


def is_sound(kind: Any) -> bool:
    """Return whether an HDF5 type is one that can be converted: the library writes past its memory for some others.

    Members of a compound must lie side by side within it, and numbers be those of a processor.
    """
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        members = [(kind.get_member_offset(i), kind.get_member_type(i)) for i in range(kind.get_nmembers())]
        end = 0
        for offset, member in sorted(members, key=lambda pair: int(pair[0])):
            if offset < end or not is_sound(member):
                return False
            end = offset + member.get_size()
        return bool(end <= kind.get_size())
    if isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeArrayID):
        return is_sound(kind.get_super())
    if isinstance(kind, h5py.h5t.TypeFloatID | h5py.h5t.TypeIntegerID):
        return bool(kind.equal(h5py.h5t.py_create(kind.dtype)))
    return True


def read_attribute(member: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return an attribute, or None if there is none, or if its size or type is absurd."""
    if name not in member.attrs:
        return None
    attribute = member.attrs.get_id(name)
    if not is_sound(attribute.get_type()):
        return None
    if attribute.get_space().get_simple_extent_npoints() * attribute.get_type().get_size() > _FEW:
        return None
    return member.attrs[name]


def members(group: h5py.Group) -> Iterator[h5py.Dataset | h5py.Group]:
    """Yield what lies below a group, each once, without following links to other files; what fails is left out."""
    waiting: list[h5py.Group] = [group]
    seen: set[Any] = set()
    while waiting and len(seen) < _MOST_MEMBERS:
        parent = waiting.pop()
        with _mere_errors():
            for name in parent:
                with _mere_errors():
                    member = None if isinstance(parent.get(name, getlink=True), h5py.ExternalLink) else parent[name]
                    place = None if member is None else h5py.h5o.get_info(member.id).addr
                    if place is None or place in seen:
                        continue
                    seen.add(place)
                    if isinstance(member, h5py.Group):
                        waiting.append(member)
                    if isinstance(member, h5py.Group | h5py.Dataset):
                        yield member


@contextmanager
def _mere_errors() -> Iterator[None]:
    """Pass over what h5py raises on bad bytes, but for the lack of memory, which would not end a larger process."""
    try:
        yield
    except FAILURES as error:
        if _NO_MEMORY.search(str(error)):
            raise MemoryError from error


def visit(path: str, values: bool) -> None:
    """Look at everything in a file as a reader would, with the values or without; a mere error is the reader's."""
    size = Path(path).stat().st_size
    _allow(size)
    with h5py.File(path, "r") as file:
        for member in (file, *members(file)):
            with _mere_errors():
                for name in member.attrs:
                    with _mere_errors():
                        read_attribute(member, name)
            with _mere_errors():
                if isinstance(member, h5py.Dataset) and why_not_stored(member, size) is None and member.size:
                    _allow(size + member.nbytes)
                    _read(member, values and size <= MOST_BYTES)


def _read(dataset: h5py.Dataset, values: bool) -> None:
    if not dataset.ndim:
        dataset[()]
    elif values:
        step = max(1, 2**22 // max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:])))
        for start in range(0, dataset.shape[0], step):
            dataset[start : start + step]
    elif dataset.ndim == 1:
        for number in (0, min(len(dataset), N_RECORDS) - 1):
            dataset[number]
    elif not dataset.chunks:
        dataset[(0,) * dataset.ndim]


def _allow(n_bytes: int) -> None:
    """Let the system end this process if it takes more time than so many bytes explain, and refuse it more memory.

    Where the system cannot, the caller's clock ends it.
    """
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource
        import signal

        signal.setitimer(signal.ITIMER_PROF, min(SECONDS + n_bytes / BYTES_PER_SECOND, 1000.0))
        if sys.platform == "linux":
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            most, hard = taken + _MEMORY + _MEMORY_PER_BYTE * n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Answer requests until stdin ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # what _allow does not go beyond
    except (ImportError, OSError, ValueError):
        pass
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        path, values = json.loads(line)
        said = None
        try:
            with _mere_errors():
                visit(path, values)
        except MemoryError:
            said = "reading it takes more memory than its size explains"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
