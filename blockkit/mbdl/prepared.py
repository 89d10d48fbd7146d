"""Scans made ready for training: what is costly is computed once a scan, and kept while it fits."""

import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blockkit.data.scan import Scan
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.sense import Encoding

CACHE_SHARE = 0.4  # of the machine's memory


class PreparedScans(Sequence[tuple[DataTerm, Tensor]]):
    """The scans' data terms and references, made when first asked for and kept while they fit the cache."""

    def __init__(
        self, name: str, scans: Sequence[Scan], model: UnrolledNetwork, check: Callable[[Scan], None] | None = None
    ) -> None:
        self.name, self.scans, self.data_term = name, scans, model.data_term
        self.check, self.checked = check, 0
        self.device = model.step_size.device
        self.most_bytes = CACHE_SHARE * _machine_bytes()
        self.kept: dict[int, tuple[DataTerm, Tensor]] = {}
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[tuple[DataTerm, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> tuple[DataTerm, Tensor]:  # type: ignore[override]
        if i in self.kept:
            return self.kept[i]
        scan = self.scans[i]
        if not isinstance(scan, Scan):
            raise TypeError(f"{self.name}[{i}] is a {type(scan).__name__}, expected a blockkit.Scan: load_scan(path).")
        if scan.reference is None or not scan.reference.any():
            what = "no reference" if scan.reference is None else "a reference that is zero everywhere"
            raise ValueError(
                f"{self.name}[{i}] has {what}, expected an image to compare with. Leave it out of {self.name}."
            )
        if self.check is not None and scan.maps.numel() > self.checked:  # larger than any before
            self.check(scan)
            self.checked = scan.maps.numel()
        A = Encoding(scan.trajectory.to(self.device), scan.maps)
        with torch.no_grad():
            made = prepare(A, scan.kspace.to(self.device), self.data_term), scan.reference.to(self.device)
        A.fourier.forget_plans()
        size = scan.maps.nbytes + 8 * scan.reference.nbytes + 2 * scan.trajectory.nbytes
        if self.n_bytes + size <= self.most_bytes:
            self.kept[i] = made
            self.n_bytes += size
        return made


def _machine_bytes() -> int:
    """Return the bytes of memory of this machine, or 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30
