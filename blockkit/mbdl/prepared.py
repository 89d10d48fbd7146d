"""Scans made ready for training: what is costly is computed once a scan, and kept while it fits."""

import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.unrolled import UnrolledNetwork

CACHE_SHARE = 0.4  # of the machine's memory

Prepared = tuple[DataTerm, Tensor | HeldOut]
Check = Callable[[Scan], None]


class PreparedScans(Sequence[Prepared]):
    """The scans' data terms and references, made when first asked for and kept while they fit the cache."""

    share_held_out = 0.0  # of a scan's samples, that only the loss sees

    def __init__(
        self, name: str, scans: Sequence[Scan], model: UnrolledNetwork, check: Check | None = None, seed: int = 0
    ) -> None:
        self.seed = seed  # of what is drawn: here nothing
        self.name, self.scans, self.data_term = name, scans, model.data_term
        self.check, self.checked = check, 0
        self.device = model.step_size.device
        self.most_bytes = CACHE_SHARE * _machine_bytes()
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
        if key in self.kept:
            return self.kept[key]
        scan = self.scans[i]
        if not isinstance(scan, Scan):
            raise TypeError(f"{self.name}[{i}] is a {type(scan).__name__}, expected a blockkit.Scan: load_scan(path).")
        self.look_at(scan, self.called(i))
        if self.check is not None and scan.maps.numel() > self.checked:  # larger than any before
            self.check(scan)
            self.checked = scan.maps.numel()
        made, size = self.make(scan, *key)
        if self.n_bytes + size <= self.most_bytes:
            self.kept[key] = made
            self.n_bytes += size
        return made

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


def _machine_bytes() -> int:
    """Return the bytes of memory of this machine, or 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30
