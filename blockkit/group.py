"""The processes that share one volume: each does its part, the parts are added up, and what fails on one fails on all.

Volumes are alike on all processes; coils and windows are dealt out. So one collective has the size of a volume: the sum
over the processes, in place. Before each, every process says in one number whether its own part went well, and what it
is about to add: if one failed, or they are not all at the same, all raise, and none waits for ever for another.
"""

import atexit
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # to wait for a process that hangs; one that ended is noticed at once
HOLD_SECONDS = 1.0  # to wait, after a sum, for the library to let go of its tensor; it takes microseconds
ALIKE = 1e-3  # relative: up to this, numbers count as the same on all processes, which may round differently
_ON_ALL = "Raised on all processes, since it happened on"


class LostProcessError(RuntimeError):
    """Another process ended, or said nothing for :data:`TIMEOUT`."""


@dataclass(frozen=True)
class Group:
    """The processes that share a volume: the number of this one, and how many there are. One alone shares nothing.

    All processes call the methods that tell the others something, in the same order; ``what`` says what for, in errors.
    While memory is predicted, on tensors without numbers, nothing is sent.
    """

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> slice:
        """Return which of ``n`` things in a row are this process's: as evenly as it goes, the first ones have more."""
        least, n_more = divmod(n, self.size)
        start = self.rank * least + min(self.rank, n_more)
        return slice(start, start + least + (self.rank < n_more))

    def together(self, what: str, action: Callable[[], T]) -> T:
        """Return what ``action`` returns on this process; if it fails on one, its error is raised on all."""
        if not self._talks:
            return action()
        try:
            result = action()
        except Exception as error:
            if not is_on_all(error):
                self._exchange(what, error)
            raise
        made = result if isinstance(result, list) else [result]
        self._exchange(" ".join([what, *(f"{tuple(t.shape)} {t.dtype}" for t in made if isinstance(t, Tensor))]))
        return result

    def sum_of(self, what: str, part: Callable[[], Tensor]) -> Tensor:
        """Return the sum over the processes of the tensor that ``part`` makes on each, in its place."""
        (total,) = self.sums_of(what, lambda: [part()])
        return total

    def sums_of(self, what: str, parts: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the sums over the processes of each of the tensors that ``parts`` makes, in their places."""
        if self.size == 1:
            return parts()
        tensors = self.together(what, lambda: [tensor.contiguous() for tensor in parts()])
        if self._talks:
            with _disable_current_modes():  # whoever counts memory counts the tensors, not this
                for tensor in tensors:
                    _add_up(tensor)
        return tensors

    def norms_of(self, what: str, norms: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the L2 norms of vectors of which each process knows those of its own parts."""
        if self.size == 1:
            return norms()
        return [total.sqrt() for total in self.sums_of(what, lambda: [norm.square() for norm in norms()])]

    def largest(self, what: str, value: Tensor) -> Tensor:
        """Return the largest value of all processes, of a tensor without axes."""
        everyone = self.gather(what, float(value)) if self._talks else []
        return value.new_tensor(max(everyone)) if everyone else value

    def any(self, what: str, mine: bool) -> bool:
        """Tell whether it is true on a process."""
        return any(self.gather(what, mine))

    def gather(self, what: str, mine: T) -> list[T]:
        """Return what each process gives, in the order of the processes, on all of them."""
        if not self._talks:
            return [mine]
        self._exchange(what)
        return self._gathered(mine)

    def agree(self, what: str) -> None:
        """Raise ValueError on all unless all say the same."""
        if self._talks:
            self._exchange(what)

    def check_alike(self, what: str, numbers: Callable[[], Tensor], advice: str) -> None:
        """Raise ValueError on all unless the ``numbers``, a vector that tells ``what``, are the same on all."""
        if not self._talks:
            return
        everyone = self.gather(what, self.together(what, numbers).double().cpu())
        for rank, other in enumerate(everyone):
            if not torch.allclose(other, everyone[0], rtol=ALIKE, atol=0, equal_nan=True):
                error = ValueError(f"Process {rank} has other {what} than process 0. {advice}")
                raise _on_all(error, f"process {rank}")

    @property
    def _talks(self) -> bool:
        return self.size > 1 and detect_fake_mode() is None

    def _gathered(self, mine: T) -> list[T]:
        everyone: list[T] = [mine] * self.size
        with _disable_current_modes():
            _or_lost(lambda: distributed.all_gather_object(everyone, mine, group=_small_talk()))
        return everyone

    def _exchange(self, what: str, error: Exception | None = None) -> None:
        """Tell the others what was done here, or which error there was, and raise if not all did the same."""
        with _disable_current_modes():
            mine = torch.tensor([0 if error is not None else 1 + zlib.crc32(what.encode())])
            codes = [torch.empty_like(mine) for _ in range(self.size)]
            _or_lost(lambda: distributed.all_gather(codes, mine, group=_small_talk()))
            if all(int(code) == int(codes[0]) != 0 for code in codes):
                return
        everyone = self._gathered((what, None if error is None else that_travels(error)))
        for rank, (_, failure) in enumerate(everyone):
            if failure is not None:
                raise _on_all(failure, f"process {rank}") from error
        rank, other = next((r, said) for r, (said, _) in enumerate(everyone) if said != everyone[0][0])
        raise _on_all(
            ValueError(
                f"Process {rank} is at {other}, and process 0 at {everyone[0][0]}: expected all at the same. Give all "
                "of them the same model, blocks, scan and arguments."
            ),
            f"process {rank}",
        )


ALONE = Group()


def join() -> Group:
    """Return the group of all processes that ``torchrun`` started, joined if they are not yet; or of this one alone.

    All processes call it. Those that joined by ``torch.distributed.init_process_group`` stay as they are.

    Examples
    --------
    >>> from blockkit.group import join
    >>> join()  # without torchrun
    Group(rank=0, size=1)
    """
    if not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        if n_processes() == 1:
            return ALONE
        on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        if on_gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
        if on_gpus:
            atexit.register(distributed.destroy_process_group)  # or NCCL warns
    _small_talk()
    return Group(distributed.get_rank(), distributed.get_world_size())


def n_processes() -> int:
    """Return how many processes ``torchrun`` started; 1 without it."""
    available = distributed.is_available() and distributed.is_torchelastic_launched()
    return int(os.environ["WORLD_SIZE"]) if available else 1


def is_on_all(error: BaseException) -> bool:
    """Tell whether all processes raise this error, or what it was raised from, or one is lost: then nobody is told."""
    notes = getattr(error, "__notes__", ())
    if isinstance(error, LostProcessError) or any(note.startswith(_ON_ALL) for note in notes):
        return True
    return error.__cause__ is not None and is_on_all(error.__cause__)


def that_travels(error: Exception) -> Exception:
    """Return an error that can be sent to another process: of the same kind and words, or with its kind in words."""
    kind, plain = type(error), all(isinstance(arg, str | int) for arg in error.args)
    if plain and "<locals>" not in kind.__qualname__:
        try:
            same = kind(*error.args)
        except Exception:
            same = None
        if same is not None and str(same) == str(error):
            return same
    return RuntimeError(f"{kind.__name__}: {error}")


_talking: dict[str, Any] = {"world": None, "small": None}


def _small_talk() -> Any:
    """Return the group that small things go through, on the CPU: that of the volumes, if it can."""
    world = distributed.group.WORLD
    if _talking["world"] is not world:
        on_cpu = "cpu:" in distributed.distributed_c10d.get_backend_config(world)
        small = world if on_cpu else distributed.new_group(backend="gloo", timeout=TIMEOUT)
        _talking.update(world=world, small=small)
    return _talking["small"]


def _add_up(tensor: Tensor) -> None:
    """Sum a tensor over the processes, in its place, and return when nobody else holds it.

    Gloo's thread lets go of a tensor a moment after its sum is there, at times after the caller has: then an image
    would live on into the next step, which no prediction can know of.
    """
    holders: Callable[[], int] = tensor._use_count  # type: ignore[attr-defined]
    n_before, patience = holders(), time.monotonic() + HOLD_SECONDS
    _or_lost(partial(distributed.all_reduce, tensor))
    while not tensor.is_cuda and holders() > n_before and time.monotonic() < patience:
        time.sleep(1e-5)


def _or_lost(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise LostProcessError(
            f"A process of this group ended, or was silent for {TIMEOUT}; what it said stands further up. ({error})"
        ) from error


def _on_all(error: Exception, where: str) -> Exception:
    error.add_note(f"{_ON_ALL} {where}.")
    return error
