"""Where what backward needs of the unrolls waits for it: in place, in the CPU's memory, or on disk.

PyTorch lets a pair of hooks stand between the graph and the tensors it keeps: one takes each tensor in, the other gives
it back, once, when backward comes to it. Here they take the tensors to where there is room. Values and gradients stay
the same to the bit.
"""

import errno
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

OFFLOADS = (None, "cpu", "disk")
LEAST_BYTES = 2**16  # smaller tensors stay: norms, step sizes


@contextmanager
def offloading(where: str | None, staying: Iterable[Tensor] = ()) -> Iterator[None]:
    """Take what the graph built inside the ``with`` block keeps for backward to the CPU's memory or to disk.

    Parameters
    ----------
    where
        None: leave it where it is. ``"cpu"``: from a GPU to pinned memory, by a stream of its own; on a CPU, nothing.
        ``"disk"``: to a file without a name in the folder for temporary files, which the system removes as soon as
        nothing uses it, also if the process is killed.
    staying
        Tensors that live on anyway, such as weights: taking them away would free nothing.

    Raises
    ------
    OSError
        If the disk is full.
    """
    if where is None or not torch.is_grad_enabled():
        yield
        return
    store = _Disk() if where == "disk" else _Pinned()
    stay = {tensor.untyped_storage()._cdata for tensor in staying}

    def pack(tensor: Tensor) -> _Away:
        stays = tensor.nbytes < LEAST_BYTES or tensor.untyped_storage()._cdata in stay
        if stays or (where == "cpu" and tensor.device.type == "cpu"):
            return _Here(tensor, tensor._version)
        return store.put(tensor)

    def unpack(kept: _Away) -> Tensor:
        return kept.get()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _Away(Protocol):
    """A tensor that is elsewhere."""

    def get(self) -> Tensor:
        """Bring it back."""


@dataclass(frozen=True)
class _Here:
    """A tensor that stays. With hooks, PyTorch itself no longer sees that it was changed before backward."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"A tensor of shape {tuple(self.tensor.shape)} that backward needs was changed in place after forward, "
                "by optimizer.step() for instance: the gradient would be wrong. Call backward first."
            )
        return self.tensor


class _Store(Protocol):
    def put(self, tensor: Tensor) -> _Away:
        """Take a tensor away."""


@dataclass(frozen=True)
class _Layout:
    """What is needed to make a tensor like another, strides included."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self, device: torch.device | None = None, *, pinned: bool = False) -> Tensor:
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=device or self.device, pin_memory=pinned
        )


def _dense(tensor: Tensor) -> tuple[Tensor, _Layout]:
    """Return a tensor without gaps, and how it lies in memory."""
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        tensor = tensor.contiguous()
    return tensor, _Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _bytes(tensor: Tensor) -> Tensor:
    """View a dense tensor on the CPU as bytes, in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


class _Disk:
    """One file for all tensors of one ``with`` block, written one after the other."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as a graph needs it
        weakref.finalize(self, self.file.close)
        self.end = 0

    def put(self, tensor: Tensor) -> _Away:
        tensor, layout = _dense(tensor.detach())
        place = _OnDisk(self, self.end, layout)
        if not isinstance(tensor, FakeTensor):
            self._write(_bytes(tensor.cpu()))
        return place

    def _write(self, data: Tensor) -> None:
        try:
            self.file.seek(self.end)
            self.file.write(data.numpy().data)
            self.file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            folder = tempfile.gettempdir()
            raise OSError(
                error.errno,
                f'offload="disk" has no room for {data.nbytes:,} bytes more after {self.end:,}: {folder} has '
                f"{shutil.disk_usage(folder).free:,} free. Name a folder on a larger disk in the environment variable "
                "TMPDIR, or use fewer unrolls.",
            ) from error
        self.end += data.nbytes


@dataclass(frozen=True)
class _OnDisk:
    store: _Disk
    start: int
    layout: _Layout

    def get(self) -> Tensor:
        tensor = self.layout.empty(torch.device("cpu"))
        if not isinstance(tensor, FakeTensor):
            self.store.file.seek(self.start)
            n_read = self.store.file.readinto(_bytes(tensor).numpy().data)
            if n_read != tensor.nbytes:
                raise OSError(f'offload="disk" wrote {tensor.nbytes:,} bytes and read {n_read:,}: is the disk sound?')
        return tensor.to(self.layout.device)


class _Pinned:
    """Pinned memory, filled by a stream of its own while the GPU goes on."""

    def put(self, tensor: Tensor) -> _Away:
        tensor, layout = _dense(tensor.detach())
        host = layout.empty(torch.device("cpu"), pinned=not isinstance(tensor, FakeTensor))
        if isinstance(tensor, FakeTensor):
            return _InPinned(host, layout, None)
        side = _side_stream(tensor.device)
        side.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(side):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(side)
        return _InPinned(host, layout, side.record_event())


@dataclass(frozen=True)
class _InPinned:
    host: Tensor
    layout: _Layout
    written: torch.cuda.Event | None

    def get(self) -> Tensor:
        if self.written is not None:
            torch.cuda.current_stream(self.layout.device).wait_event(self.written)
        return self.host.to(self.layout.device, non_blocking=True)


_side_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _side_streams[device]
