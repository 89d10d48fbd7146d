"""Reconstruct all scans of a folder: one after another or in several processes, and only those not done yet."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from blockkit.checks import check_count
from blockkit.data.files import counted, printable
from blockkit.data.folder import ScanFolder
from blockkit.folders.claims import Claims
from blockkit.folders.image_records import describe_method, places_of
from blockkit.folders.one_scan import Method, Recipe
from blockkit.folders.scan_queue import FolderResult, Queue, ScanResult, printed
from blockkit.folders.workers import Here, Workers

POLL_SECONDS = 1.0


def reconstruct_folder(
    folder: ScanFolder | str | os.PathLike[str],
    output: str | os.PathLike[str],
    method: Method,
    *,
    workers: int | Sequence[str] = 1,
    again: bool = False,
    check_memory: bool = True,
    watch: Callable[[ScanResult], None] | None = None,
) -> FolderResult:
    """Reconstruct the scans of a folder, each into a NIfTI file of its own; the same call goes on after any stop.

    The image of ``folder/a/x.h5`` is ``output/a/x.h5.nii.gz``, the magnitude, with a record beside it, ``x.h5.json``:
    size and time of the scan's file, the weights' SHA-256 or the function's name and options, seconds, versions. Both
    are written beside and renamed, image first, so after Ctrl-C, a kill or a power cut what is there is whole. An image
    whose record says the same as this call is left alone. Block, device and threads may differ: they change no image
    but by rounding. What a function does inside is not looked at. On one thread images have the bits of single ones.

    A scan that fails is in ``result.problems``, with its reason in its record; the others go on, and the next call
    tries it again. Of several workers each counts on its part of the free memory; a scan that does not fit into it, or
    whose process is killed, is tried once more at the end, alone. Several calls at once, on one machine or on many with
    a common disk (``torchrun``, Slurm), share the scans by claims, files that a process keeps fresh, and end when all
    scans are done: what a dead process had is taken over, at once on its own machine, elsewhere after five minutes.

    Parameters
    ----------
    folder
        Scans, or where they are. Its ``load`` is a function of a module, or ``functools.partial`` of one.
    output
        Folder to write into, made if it is not there. Within ``folder`` it is not read.
    method
        A model, or a function ``(A, kspace) -> image (z, y, x)`` of a module, such as :func:`compressed_sensing`, with
        options by ``functools.partial``.
    workers
        How many scans at a time. 1: in this process. More: in processes of their own, which share this one's threads,
        or, if the model is on a GPU, have a GPU each. Or the device of each, such as ``["cuda:0", "cuda:1"]``.
    again
        Whether images that were made otherwise, or of a scan that has changed since, are made anew. If not, that is an
        error.
    check_memory
        Whether a scan fails, by a prediction, where a model takes more memory than is free.
    watch
        Called with a :class:`~blockkit.folders.scan_queue.ScanResult` for each scan as it ends. None: it is printed.

    Returns
    -------
    FolderResult
        To print: ``images`` and ``problems`` by scan.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no scan in it.
    ValueError
        If ``output`` is ``folder`` or holds images that were made otherwise, or something cannot be sent to workers.
    TypeError
        If ``method``, or one of its options, has no name to remember it by.
    ChildProcessError
        If a worker ends before its first scan.
    KeyboardInterrupt
        At Ctrl-C or SIGTERM, when all workers have ended; the message says how far it came.

    Examples
    --------
    >>> scan.save("anna_1.h5")
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=1, block_shape="auto")
    >>> result = bk.reconstruct_folder(".", "images", model, watch=lambda one: None)
    >>> print(result)
    1 of 1 scan has its image in 'images': 1 new
    """
    folder, output = folder if isinstance(folder, ScanFolder) else ScanFolder(folder), Path(output)
    _check_output(folder, output)
    devices = _devices(workers, method)
    how = {"method": describe_method(method)}
    if folder.load is not None:
        how["load"] = describe_method(folder.load)
    places = places_of(folder, output)
    if not places:
        raise FileNotFoundError(f"All scans of '{folder.path}' are in '{output}', where images go: nothing is left.")
    recipe = Recipe(method, folder.load, devices[0], check_memory, how)
    with _ended_by_signals(), Claims() as claims:
        queue = Queue(output, places, how, claims, watch or printed)
        queue.begin(again=again)
        try:
            if queue.is_open:
                several = Workers(recipe, devices[: queue.n_left]) if len(devices) > 1 else None
                with closing(several or Here(recipe)) as runner:
                    _run(queue, runner)
        except KeyboardInterrupt:
            n_done = len(queue.result.images)
            raise KeyboardInterrupt(
                f"stopped: {n_done} of {counted(len(places), 'scan')} done in '{printable(output)}'. The same again "
                "goes on with the rest."
            ) from None
        finally:
            queue.clean_up()
    return queue.result


def _run(queue: Queue, runner: Here | Workers) -> None:
    """Keep the runner busy until every scan is done or has failed, here or in another process."""
    while queue.is_open:
        while runner.is_idle and not queue.is_last_try and (place := queue.take()) is not None:
            runner.submit(place)
        if runner.is_empty and runner.is_idle and queue.crowded:
            runner.submit(queue.crowded.pop(0), alone=True)
            queue.is_last_try = True
        if runner.is_empty:
            queue.say_who_has_the_rest()
            time.sleep(POLL_SECONDS)
        for place, attempt in runner.results(POLL_SECONDS):
            for said in attempt.warnings:
                warnings.warn(f"{place.name}: {said}", RuntimeWarning, stacklevel=3)
            queue.finish(place, attempt, crowded=runner.n_workers > 1)


def _check_output(folder: ScanFolder, output: Path) -> None:
    if output.resolve() == folder.path.resolve():
        raise ValueError(
            f"The output '{output}' is the folder of the scans. Give another, such as '{output / 'images'}'."
        )
    if output.name.endswith((".nii", ".nii.gz")) and not output.is_dir():
        raise ValueError(
            f"The output '{output}' is the name of an image, expected a folder: one for each scan goes there."
        )
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output '{output}' is a file, expected a folder for the images of a folder.")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{output.parent}' to make '{output.name}' in. Make it first.")


def _devices(workers: int | Sequence[str], method: object) -> list[str]:
    """Return the device of each worker."""
    if not isinstance(workers, int):
        devices = [str(torch.device(device)) for device in workers]
        if not devices or len({d for d in devices if d != "cpu"}) < len([d for d in devices if d != "cpu"]):
            raise ValueError(f"workers is {workers!r}, expected a number, or devices with no GPU twice.")
        return devices
    n = check_count(workers, "workers")
    first = next(iter(method.parameters()), torch.zeros(0)).device if isinstance(method, nn.Module) else "cpu"
    device = torch.device(first)
    if device.type != "cuda" or n == 1:
        return [str(device)] * n
    if n > torch.cuda.device_count():
        raise ValueError(f"workers is {n}, and there are {counted(torch.cuda.device_count(), 'GPU')}: each takes one.")
    return [f"cuda:{i}" for i in range(n)]


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, end this as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
