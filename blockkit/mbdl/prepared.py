"""Scans made ready for training: what is costly is computed once a scan, and kept while it fits."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan
from blockkit.group import ALONE, Group
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.ranks import n_sharing
from blockkit.mbdl.shortage import is_out_of_memory
from blockkit.mbdl.unrolled import UnrolledNetwork

CACHE_SHARE = 0.4  # of the memory of the machine, or of the GPU, for all processes that share it

Prepared = tuple[DataTerm, Tensor | HeldOut]
Check = Callable[[Scan], None]


class BadScanError(ValueError):
    """A scan that cannot be trained on; the message names it, and says why."""


class PreparedScans(Sequence[Prepared]):
    """The scans' data terms and references, made when first asked for and kept while they fit the cache."""

    share_held_out = 0.0  # of a scan's samples, that only the loss sees

    def __init__(
        self,
        name: str,
        scans: Sequence[Scan],
        model: UnrolledNetwork,
        check: Check | None = None,
        seed: int = 0,
        group: Group = ALONE,
    ) -> None:
        self.seed = seed  # of what is drawn: here nothing
        self.group = group  # the processes that share each scan
        self.name, self.data_term = name, model.data_term
        self.scans = scans.spread() if group.size > 1 and isinstance(scans, ScanFolder) else scans
        self.check, self.checked = check, 0
        self.device = model.step_size.device
        self.most_bytes: float = CACHE_SHARE * _memory_of(self.device) / n_sharing(self.device)
        self.kept: dict[tuple[int, int], Prepared] = {}
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[Prepared]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Prepared:  # type: ignore[override]
        return self.get(i)

    def get(self, i: int, epoch: int = 0) -> Prepared:
        """Return scan ``i``, made ready for the pass ``epoch`` over the scans."""
        key = i, self.variant(i, epoch)
        if not self.group.any("a scan to be prepared", key not in self.kept):
            return self.kept[key]
        name = self.called(i)
        with _named(name, "cannot be read", OSError, ValueError, KeyError, EOFError, RuntimeError):
            scan = self.scans[i]
        if not isinstance(scan, Scan):
            raise TypeError(f"{self.name}[{i}] is a {type(scan).__name__}, expected a blockkit.Scan: load_scan(path).")
        scan = self.part_of(scan, name)
        with _named(name, "cannot be used", ValueError):
            self.look_at(scan, name)
        larger = self.group.any("a larger scan", scan.maps.numel() > self.checked)  # than any before
        if self.check is not None and larger:
            self.check(scan)
            self.checked = max(self.checked, scan.maps.numel())
        with _named(name, "cannot be used", ValueError):
            made, size = self.make(scan, *key)
        if key not in self.kept and self.n_bytes + size <= self.most_bytes:
            self.kept[key] = made
            self.n_bytes += size
        return made

    def forget(self) -> None:
        """Give back what is kept, and keep nothing from now on."""
        self.kept, self.n_bytes, self.most_bytes = {}, 0, 0

    def part_of(self, scan: Scan, name: str) -> Scan:
        """Return the part of a scan that this process has, or the scan if it is not shared."""
        if self.group.size > 1:
            return scan.spread()
        if scan.group.size > 1:
            raise ValueError(f"{name} is spread over processes, expected a whole scan. Write fit(..., spread=True).")
        return scan

    def called(self, i: int) -> str:
        """Return what messages call scan ``i``: with its file, where it has one."""
        file = f" ('{self.scans.paths[i]}')" if isinstance(self.scans, ScanFolder) else ""
        return f"{self.name}[{i}]{file}"

    def variant(self, i: int, epoch: int) -> int:
        """Return which of the ways to make scan ``i`` ready is that of a pass: here there is one."""
        return 0

    def look_at(self, scan: Scan, name: str) -> None:
        """Raise unless the scan has what is needed."""
        if scan.reference is None or not scan.reference.any():
            what = "no reference" if scan.reference is None else "a reference that is zero everywhere"
            raise ValueError(
                f"{name} has {what}, expected an image to compare with. Leave it out of {self.name}, or train without "
                'references: fit(..., target="self").'
            )

    def make(self, scan: Scan, i: int, variant: int) -> tuple[Prepared, int]:
        """Return the data term and the target of a scan, and the bytes that they take."""
        if scan.reference is None:
            raise ValueError(f"{self.called(i)} has no reference.")
        data = self.data_of(scan)
        size = scan.maps.nbytes + 8 * scan.reference.nbytes + 2 * scan.trajectory.nbytes
        return (data, scan.reference.to(self.device)), size

    def data_of(self, scan: Scan) -> DataTerm:
        """Return the data term of a scan, without the plans that made it."""
        A = scan.encoding(self.device)
        with torch.no_grad():
            data = prepare(A, scan.kspace.to(self.device), self.data_term)
        A.fourier.forget_plans()
        return data


@contextmanager
def _named(name: str, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of these types into one that names the scan."""
    try:
        yield
    except errors as error:
        if is_out_of_memory(error):
            raise
        file = name.partition(" (")[2].removesuffix(")")  # which many errors begin with
        said = str(error).removeprefix(f"{file}: ").removeprefix(f"{file} ") or type(error).__name__
        raise BadScanError(said if said.startswith(name) else f"{name} {what}: {said}") from error


def _memory_of(device: torch.device) -> int:
    """Return the bytes of memory of a GPU, or of this machine; 8 GiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30
