"""What runs the scans of a folder: this process, or several of their own that are started, fed and ended here."""

import contextlib
import copy
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from torch import nn

from blockkit.blockwise.resident import free_bytes, give_back_heap
from blockkit.folders.image_records import Place
from blockkit.folders.one_scan import Attempt, Recipe, attempt
from blockkit.mbdl.room import count_on

Results = list[tuple[Place, Attempt]]
END_SECONDS = 5.0  # for a process to end before it is killed
ASKS, READY = "asks for its job", "ready"  # what a process says before the first scan
GUARD = (
    "A script that calls this with several workers is read by each of them too: put the call under "
    "if __name__ == '__main__':, as Python's multiprocessing asks for"
)
LESS = "If memory ran out, take fewer workers"


class Here:
    """Runs one scan at a time in this process."""

    n_workers = 1

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._results = _on_device(recipe, recipe.device), Results()

    @property
    def is_idle(self) -> bool:
        """Whether it takes a scan."""
        return not self._results

    is_empty = is_idle

    def submit(self, place: Place, *, alone: bool = False) -> None:
        """Run a scan, to its end."""
        self._results.append((place, attempt(place, self._recipe)))

    def results(self, seconds: float) -> Results:
        """Return what has ended."""
        found, self._results = self._results, Results()
        return found

    def close(self) -> None:
        """Do nothing: nothing runs."""


@dataclass
class _Worker:
    """A process, what leads to it, and the scan that it is at."""

    process: BaseProcess
    connection: Connection
    device: str
    place: Place | None = None
    is_ready: bool = False


class Workers:
    """Runs scans in processes, one for each of ``devices``, which share the threads of this one and the free memory.

    A process that ends by itself costs the scan that it was at, and another one takes its place.
    """

    def __init__(self, recipe: Recipe, devices: Sequence[str]) -> None:
        self._job = _pickled(recipe)
        self._n_threads = max(1, torch.get_num_threads() // len(devices))
        self._part: int | None = None
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                self._workers.append(self._start(device))
            while not all(worker.is_ready for worker in self._workers):
                self.results(1.0)
        except BaseException:
            self.close()
            raise
        free = free_bytes(torch.device("cpu"))  # now that all have loaded what they load
        self._part = None if free is None else free // len(devices)

    @property
    def n_workers(self) -> int:
        """How many processes there are."""
        return len(self._workers)

    @property
    def is_idle(self) -> bool:
        """Whether a process waits for a scan."""
        return any(worker.place is None and worker.is_ready for worker in self._workers)

    @property
    def is_empty(self) -> bool:
        """Whether all of them do."""
        return all(worker.place is None for worker in self._workers)

    def submit(self, place: Place, *, alone: bool = False) -> None:
        """Give a scan to a process that waits; ``alone``: with all the memory, as no other runs."""
        worker = next(worker for worker in self._workers if worker.place is None and worker.is_ready)
        part = free_bytes(torch.device("cpu")) if alone else self._part
        worker.place = place
        with contextlib.suppress(OSError):  # it is gone, which ``results`` finds out
            worker.connection.send((place, part))

    def results(self, seconds: float) -> Results:
        """Return what has ended; wait for ``seconds`` at most."""
        found = Results()
        ends = {worker.connection: worker for worker in self._workers}
        ends |= {worker.process.sentinel: worker for worker in self._workers}  # type: ignore[misc]
        for worker in {id(ends[end]): ends[end] for end in wait(list(ends), seconds)}.values():  # type: ignore[index]
            try:
                said = worker.connection.recv() if worker.connection.poll() else None
            except (EOFError, OSError):
                said = None
            if said is None and worker.process.is_alive():
                continue
            if isinstance(said, Attempt) and worker.place is not None:
                found.append((worker.place, said))
                worker.place = None
            elif said == ASKS:  # given only now: a start with a large job would wait forever for one that ended early
                with contextlib.suppress(OSError):
                    worker.connection.send_bytes(self._job)
            elif said is not None:
                worker.is_ready = True
            else:
                found.extend(self._replace(worker))
        return found

    def _replace(self, worker: _Worker) -> Results:
        """Start another process in place of one that ended, and return what became of its scan."""
        worker.process.join()
        how = _how_it_ended(worker.process.exitcode)
        if not worker.is_ready:
            raise ChildProcessError(
                f"A worker {how} before it began. {GUARD if worker.process.exitcode == 1 else LESS}."
            )
        number = self._workers.index(worker)
        worker.connection.close()
        self._workers[number] = self._start(worker.device)
        if worker.place is None:
            return Results()
        problem = f"its process {how}, as happens where memory runs out or a library fails"
        return [(worker.place, Attempt(problem=problem, lacked_room=True))]

    def _start(self, device: str) -> _Worker:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=serve, args=(theirs, device, self._n_threads), daemon=True)
        with _ignoring_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours, device)

    def close(self) -> None:
        """End all processes, at once."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()


def serve(connection: Connection, device: str, n_threads: int) -> None:
    """Run the scans that come by a connection, until it is closed: for the other process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    connection.send(ASKS)
    recipe: Recipe = pickle.loads(connection.recv_bytes())
    recipe = _on_device(recipe, device)
    connection.send(READY)
    while True:
        try:
            place, part = connection.recv()
        except EOFError:
            return
        give_back_heap()  # or the next scan's part would be counted from what is only held
        if part is not None:
            count_on(part)
        connection.send(attempt(place, recipe))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Have a process that is started here ignore Ctrl-C, which goes to all: its parent ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_device(recipe: Recipe, device: str) -> Recipe:
    """Return a recipe for a device, with a copy of the model there, or the model itself if it is there."""
    method = recipe.method
    if not isinstance(method, nn.Module) or all(p.device == torch.device(device) for p in method.parameters()):
        return replace(recipe, device=device)
    return replace(recipe, device=device, method=copy.deepcopy(method).to(device))


def _pickled(recipe: Recipe) -> bytes:
    try:
        return pickle.dumps(_on_device(recipe, "cpu"))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The method or load cannot be sent to another process: {error}. Define it in a module, not in a notebook "
            "or a function, or write workers=1."
        ) from error


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"
