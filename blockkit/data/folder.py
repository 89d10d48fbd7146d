"""A folder of scans as a sequence: read when asked for, kept while they fit, split by subject."""

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import overload

from blockkit.checks import check_count, check_number
from blockkit.data.files import ScanFileError, counted
from blockkit.data.folder_report import FolderReport, check_files
from blockkit.data.formats import ARRAYS
from blockkit.data.opening import HDF5_SUFFIXES, Opener, kind_of, open_scan
from blockkit.data.raw import named_in_errors
from blockkit.data.scan import Scan, load_scan
from blockkit.ledger import GIB


class ScanFolder(Sequence[Scan]):
    r"""The scans in the files of a folder, to train on: ``bk.fit(model, folder)``.

    Making one reads nothing. ``folder[i]`` reads a file, and the scans read last are kept; a slice is a folder of fewer
    files. :meth:`check` looks for bad files beforehand, and :meth:`split` sets subjects aside for validation.

    Parameters
    ----------
    path
        The folder.
    pattern
        Which files below it, such as ``"**/*.mat"``. None takes all that end in .h5, .hdf5, .mrd or .ismrmrd, in the
        folder and in those within it. Names that begin with a dot are left out.
    subject
        Regular expression that finds the subject in a file's path below the folder, written with ``/``: its first
        group, or all of it, such as ``r"patient(\d+)"``. None takes the sub-folder, the first one, and for a file in
        none what its name says before the first ``_``, or before the ending.
    load
        Makes a :class:`Scan` of a path. None reads the project's HDF5, and ISMRMRD, of which it makes a scan by
        :func:`make_scan`. For other formats write one with :func:`load_arrays` or :func:`load_cfl`.
    cache_gib
        GiB (2^30 bytes) of scans to keep, apart from the scan in use.

    Attributes
    ----------
    paths
        The files, sorted.
    subjects
        The subject of each file.
    load
        As given.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no such file in it.
    ValueError
        If ``subject`` is no regular expression, or does not find a subject in each path.

    Examples
    --------
    >>> for path in ("anna_1.h5", "anna_2.h5", "bert_1.h5"):
    ...     scan.save(path)
    >>> folder = bk.ScanFolder(".", pattern="*_?.h5")
    >>> len(folder), folder.subjects
    (3, ('anna', 'anna', 'bert'))
    >>> train, validation = folder.split(0.5)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pattern: str | None = None,
        *,
        subject: str | None = None,
        load: Opener | None = None,
        cache_gib: float = 1.0,
    ) -> None:
        self.path, self.load, self._spread = Path(path), load, False
        self._most_bytes = int(check_number(cache_gib, "cache_gib") * GIB)
        self.paths = _find(self.path, pattern)
        self.subjects = tuple(_subject(file.relative_to(self.path), subject) for file in self.paths)
        self._forget()

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, i: int) -> Scan: ...
    @overload
    def __getitem__(self, i: slice) -> "ScanFolder": ...
    def __getitem__(self, i: int | slice) -> "Scan | ScanFolder":
        if isinstance(i, slice):
            return self._with(range(len(self))[i])
        number = range(len(self))[i]
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        scan = self._read(self.paths[number])
        size = _n_bytes(scan)
        if size <= self._most_bytes:
            while self._n_bytes + size > self._most_bytes:
                self._n_bytes -= _n_bytes(self._kept.popitem(last=False)[1])
            self._kept[number] = scan
            self._n_bytes += size
        return scan

    def split(self, validation: float = 0.2, *, seed: int = 0) -> "tuple[ScanFolder, ScanFolder]":
        """Split by subject: return the scans to train on, and those of other subjects to validate on.

        The subjects' names and ``seed`` alone decide, so the same split comes out on every machine, and scans of a
        subject that is there already change nothing.

        Parameters
        ----------
        validation
            Share of the subjects to set aside, between 0 and 1: at least one, and not all.
        seed
            Draws them.

        Raises
        ------
        ValueError
            If there are fewer than two subjects, or ``validation`` is no such share.
        """
        if not 0 < check_number(validation, "validation") < 1:
            raise ValueError(f"validation is {validation}, expected a share of the subjects above 0 and below 1.")
        seed, names = check_count(seed, "seed", 0), set(self.subjects)
        if len(names) < 2:
            only = "of no subject" if not names else f"of one subject, {min(names)!r}"
            raise ValueError(
                f"The {len(self)} files of '{self.path}' are {only}: nobody can be set aside. A subject is a "
                "sub-folder, or what a file's name says before the first '_'; another rule is given by "
                r"subject=, such as subject=r'scan_(\d+)'."
            )
        drawn = sorted(names, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())
        aside = set(drawn[: min(len(names) - 1, max(1, round(validation * len(names))))])
        halves = ([i for i, name in enumerate(self.subjects) if (name in aside) == chosen] for chosen in (False, True))
        training, validating = map(self._with, halves)
        return training, validating

    def spread(self) -> "ScanFolder":
        """Return a folder of the same files that reads of each this process's part, as :meth:`Scan.spread` gives it.

        Of files in the project's HDF5 no other coils are read. All processes read the same files in the same order.
        """
        other = self._with(range(len(self)))
        other._spread = True
        return other

    def check(self, *, needs_reference: bool = False, values: bool | None = None) -> FolderReport:
        """Look at every file, and report what is wrong with which: by field, without reading more than is needed.

        Parameters
        ----------
        needs_reference
            Whether a scan without a reference is bad: so it is for ``fit``, unless ``target="self"``.
        values
            Whether to look for NaN, infinity and zeros among the values, some at a time. False looks at the heads
            alone. None looks at the values of files up to 64 MiB. Files that ``load`` reads are read, one at a time.

        Returns
        -------
        FolderReport
            To print. ``report.good`` is the folder without the bad files, ``report.require()`` raises if there are any.
        """
        files = check_files(self.path, self.paths, self.load, needs_reference=needs_reference, values=values)
        good = [i for i, file in enumerate(files) if file.problem is None]
        return FolderReport(files, len(set(self.subjects)), self, self._with(good))

    def _read(self, path: Path) -> Scan:
        if self._spread and self.load is None and kind_of(path) == "blockkit":
            return load_scan(path, spread=True)
        scan = read_scan(path, self.load)
        return scan.spread() if self._spread else scan

    def _with(self, numbers: Iterable[int]) -> "ScanFolder":
        """Return a folder of some of the files, with a cache of its own."""
        other = object.__new__(ScanFolder)
        other.path, other.load, other._most_bytes = self.path, self.load, self._most_bytes
        other._spread = self._spread
        chosen = list(numbers)
        other.paths = tuple(self.paths[i] for i in chosen)
        other.subjects = tuple(self.subjects[i] for i in chosen)
        other._forget()
        return other

    def _forget(self) -> None:
        self._kept: OrderedDict[int, Scan] = OrderedDict()
        self._n_bytes = 0

    def __repr__(self) -> str:
        sizes = f"{counted(len(self), 'file')} of {counted(len(set(self.subjects)), 'subject')}"
        return f"ScanFolder('{self.path}': {sizes})"


def read_scan(path: Path, load: Opener | None) -> Scan:
    """Return the scan in a file, read by ``load`` where there is one: the parameter of :class:`ScanFolder`."""
    if load is None:
        return open_scan(path)
    with named_in_errors(path):
        scan = load(path)
        if not isinstance(scan, Scan):
            raise TypeError(f"load gives a {type(scan).__name__}, expected a blockkit.Scan: bk.make_scan(raw).")
        return scan


def _find(path: Path, pattern: str | None) -> tuple[Path, ...]:
    if not path.is_dir():
        what = "is a file, expected a folder: write [load_scan(path)] for one scan" if path.exists() else "is not there"
        raise FileNotFoundError(f"The folder '{path}' {what}.")
    found = [file for file in path.glob("**/*" if pattern is None else pattern) if file.is_file()]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if pattern is None:
        found = [file for file in found if file.suffix.lower() in HDF5_SUFFIXES]
    if not found:
        wanted = f"matches {pattern!r}" if pattern is not None else f"ends in one of {', '.join(HDF5_SUFFIXES)}"
        raise FileNotFoundError(f"No file in '{path}' {wanted}. Give a pattern, such as '**/*.mat'.")
    return tuple(sorted(found, key=lambda file: file.relative_to(path).as_posix()))


def _subject(path: Path, rule: str | None) -> str:
    if rule is None:
        return path.parts[0] if len(path.parts) > 1 else path.name.split(".")[0].split("_")[0]
    try:
        match = re.search(rule, path.as_posix())
    except re.error as error:
        raise ValueError(f"subject is {rule!r}, expected a regular expression: {error}.") from error
    name = match and match.group(1 if match.re.groups else 0)
    if not name:
        raise ScanFileError(
            f"subject is {rule!r}, which finds no subject in '{path.as_posix()}'. Leave it out by pattern."
        )
    return name


def _n_bytes(scan: Scan) -> int:
    arrays = (getattr(scan, name) for name in ARRAYS)
    return sum(array.nbytes for array in arrays if array is not None)
