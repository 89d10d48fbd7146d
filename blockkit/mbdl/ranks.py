"""The processes that train one model together: each takes its part of every step, and all know what all did."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blockkit.group import ALONE, Group, is_on_all, join, n_processes, that_travels

T = TypeVar("T")


class Ranks:
    """The processes of a run: one, unless ``torchrun`` started more; then Lightning Fabric joins them.

    Every method is called by all processes, in the same order. With one process none of them does anything but run what
    it is given.

    Parameters
    ----------
    device
        Where the model is, on this process.
    spread
        Whether all take the same scans together, each its coils and windows. If not, scans are dealt out.

    Raises
    ------
    ValueError
        If the model is on a GPU that is not this process's own, or ``torchrun`` did not start the processes that are
        to share scans.
    ImportError
        If there are several processes and Lightning Fabric is not installed.
    """

    def __init__(self, device: torch.device, *, spread: bool = False) -> None:
        self.size, self.rank = n_processes(), 0
        self.group: Group = ALONE  # that shares a scan
        self.common: Exception | None = None  # the error that all processes raise, if they do
        self._fabric: Any = None
        if self.size > 1:
            self._fabric = _join(device)
            self.rank = int(self._fabric.global_rank)
            self.group = join() if spread else ALONE
        elif spread and join().size > 1:
            raise ValueError("These processes joined by themselves, expected those of torchrun: start them by it.")
        self.n_dealt = 1 if spread else self.size  # processes over which scans are dealt

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the checkpoint and shows how the run stands."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """Return what each process gives, in the order of the processes, on all of them."""
        if self.size == 1:
            return [mine]
        everyone: list[T] = [mine] * self.size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def map(self, function: Callable[[int], T], n: int) -> list[T]:
        """Return ``function(i)`` for each of ``n`` numbers, each computed by one process, in order, on all of them.

        ``function`` must not call other methods of this. If it fails, the error of the lowest number is raised on all.
        Where all take the same scans, all compute each number together, and the first one's results count.
        """
        if self.size == 1:
            return list(map(function, range(n)))
        if self.group.size > 1:
            results = [self.group.together("a scan", partial(function, i)) for i in range(n)]
            return self.group.gather("results", results)[0]
        return self._deal(function, n)

    def _deal(self, function: Callable[[int], T], n: int) -> list[T]:
        done: dict[int, T] = {}
        failed: tuple[int, Exception] | None = None
        own: Exception | None = None
        for i in range(self.rank, n, self.size):
            try:
                done[i] = function(i)
            except Exception as error:
                failed, own = (i, that_travels(error)), error
                break
        everyone = self.gather((done, failed))
        failures = [failure for _, failure in everyone if failure is not None]
        if failures:
            raise self.in_common(min(failures, key=lambda failure: failure[0])[1]) from own
        results = {i: result for part, _ in everyone for i, result in part.items()}
        return [results[i] for i in range(n)]

    def all_or_none(self, action: Callable[[], T]) -> T:
        """Return what ``action`` returns on this process; if it fails on one, its error is raised on all."""
        result: list[T] = []
        if self.size == 1:
            return action()
        self._deal(lambda _: result.append(action()), self.size)
        return result[0]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over the processes of tensors that all have, of the same shapes."""
        if self.size == 1:
            return list(tensors)
        return [self._fabric.all_reduce(tensor.contiguous(), reduce_op="sum") for tensor in tensors]

    def any(self, mine: bool) -> bool:
        """Tell whether it is true on a process."""
        return any(self.gather(mine))

    def begin_alike(self, model: nn.Module, position: dict[str, object]) -> None:
        """Give all the weights of the first process, and raise ValueError unless all are at the same position."""
        if self.size == 1:
            return
        everyone = self.gather(position)
        for rank, other in enumerate(everyone):
            if other != everyone[0]:
                raise self.in_common(
                    ValueError(
                        f"Process {rank} begins with {other}, and process 0 with {everyone[0]}. Give all of them the "
                        "same arguments, scans, and checkpoint, on a disk that all of them read."
                    )
                )
        first = {name: value.cpu() for name, value in model.state_dict().items()} if self.is_first else None
        model.load_state_dict(self._fabric.broadcast(first))

    def in_common(self, error: Exception) -> Exception:
        """Return an error that all processes are about to raise."""
        self.common = error
        return error

    @contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Leave this when all processes do, so that none ends, and has the others ended, while the first writes.

        A process that fails alone does not wait: the others do not come.
        """
        try:
            yield
        except Exception as error:
            if error is self.common or is_on_all(error):
                self.gather(None)
            raise
        self.gather(None)


def n_sharing(device: torch.device) -> int:
    """Return how many processes share the memory of a device: those of this machine on the CPU, and one on a GPU."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if device.type == "cpu" and n_processes() > 1 else 1


def _join(device: torch.device) -> Any:
    """Return the Fabric that joins this process to the others."""
    local_rank, n_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda" and device.index != local_rank:
        raise ValueError(
            f"The model is on {device}, and this is process {local_rank} of {n_here} on this machine: each takes a GPU "
            "of its own. Write model.to(f\"cuda:{os.environ['LOCAL_RANK']}\")."
        )
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError(
            "Training on several processes needs Lightning Fabric. Install it: pip install 'blockkit[scale]'."
        ) from error
    fabric = Fabric(accelerator=device.type, devices=n_here, num_nodes=n_processes() // n_here, strategy="ddp")
    fabric.launch()
    return fabric
