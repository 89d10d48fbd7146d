"""What is wrong with which file of a folder, found before the first training step."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockkit.data.files import ScanFileError, counted, printable
from blockkit.data.heads import ScanHead, look_through, read_head
from blockkit.data.opening import Opener
from blockkit.data.raw import named_in_errors
from blockkit.data.scan import Scan

if TYPE_CHECKING:
    from blockkit.data.folder import ScanFolder

CHECKED_BYTES = 2**26  # up to this size the values of a file are looked at unless asked otherwise


@dataclass(frozen=True)
class CheckedFile:
    """One file of a folder, and what was found.

    Attributes
    ----------
    path
        The file.
    problem
        What is wrong with it, and where; None if nothing is.
    head
        The scan's sizes, or None if they could not be read.
    looked_through
        Whether its values were looked at too.
    """

    path: Path
    problem: str | None
    head: ScanHead | None
    looked_through: bool


@dataclass(frozen=True, repr=False)
class FolderReport:
    """What was found in the files of a folder; ``print`` it for a table.

    Attributes
    ----------
    files
        One entry for each file.
    n_subjects
        Subjects that they are of.
    folder
        What was checked.
    good
        The same without the bad files.
    """

    files: tuple[CheckedFile, ...]
    n_subjects: int
    folder: "ScanFolder"
    good: "ScanFolder"

    @property
    def bad(self) -> tuple[CheckedFile, ...]:
        """The files with which something is wrong."""
        return tuple(file for file in self.files if file.problem is not None)

    def require(self) -> "ScanFolder":
        """Return the folder, or raise ScanFileError with every bad file and what is wrong with it."""
        if self.bad:
            head = f"{len(self.bad)} of {counted(len(self.files), 'file')} in '{self.folder.path}' cannot be used:"
            tail = "Mend them, or leave them out: folder.check().good; in the shell, --skip-bad."
            raise ScanFileError("\n".join((head, *map(self.line, self.bad), tail)))
        return self.folder

    def line(self, file: CheckedFile) -> str:
        """Return a line with a bad file and what is wrong with it."""
        return f"  {self._name(file)}: {file.problem}"

    def __str__(self) -> str:
        """Return a table: a line for each file."""
        n_bad = len(self.bad)
        head = f"{counted(len(self.files), 'file')} of {counted(self.n_subjects, 'subject')} in '{self.folder.path}': "
        lines = [head + (f"{n_bad} bad" if n_bad else "all good")]
        width = max(len(self._name(file)) for file in self.files)
        for file in self.files:
            said = "BAD   " + file.problem if file.problem is not None else f"good  {file.head}"
            unseen = "" if file.looked_through or file.problem is not None else "; values not looked at"
            lines.append(f"  {self._name(file):{width}}  {said}{unseen}")
        return "\n".join(lines)

    __repr__ = __str__

    def _name(self, file: CheckedFile) -> str:
        return printable(file.path.relative_to(self.folder.path).as_posix())


def check_files(
    folder: Path, paths: Iterable[Path], load: Opener | None, *, needs_reference: bool, values: bool | None
) -> tuple[CheckedFile, ...]:
    """Return what is wrong with each file, in order; the parameters are those of :class:`ScanFolder`."""
    return tuple(_check(path, load, needs_reference, values) for path in paths)


def _check(path: Path, load: Opener | None, needs_reference: bool, values: bool | None) -> CheckedFile:
    head, looked = None, False
    try:
        if load is not None:
            with named_in_errors(path):
                head, looked = _head_of(load(path)), True
        else:
            head = read_head(path)
            if values or (values is None and path.stat().st_size <= CHECKED_BYTES):
                look_through(path)
                looked = True
        if needs_reference and not head.has_reference:
            raise ScanFileError('reference is missing: leave the file out, or train with target "self", without')
    except Exception as error:  # what ``load`` raises is its own affair
        return CheckedFile(path, _without_path(str(error) or type(error).__name__, path), head, looked)
    return CheckedFile(path, None, head, looked)


def _head_of(scan: object) -> ScanHead:
    if not isinstance(scan, Scan):
        raise TypeError(f"load gives a {type(scan).__name__}, expected a blockkit.Scan: bk.make_scan(raw).")
    if not scan.kspace.any():
        raise ValueError("kspace is zero everywhere, expected a signal.")
    has_reference, has_field_map = scan.reference is not None, scan.field_map is not None
    n_samples = scan.kspace.shape[1]
    return ScanHead(scan.image_shape, scan.n_coils, n_samples, scan.voxel_size, has_reference, has_field_map)


def _without_path(message: str, path: Path) -> str:
    """Return an error's message without the file's name in front, which stands beside it."""
    for begin in (f"'{path}': ", f"'{path}' "):
        message = message.removeprefix(begin)
    return printable(message.removeprefix("holds a scan that does not fit together: ")).removesuffix(".")
