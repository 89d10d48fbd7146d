"""What the benchmarks share: the line that says where a figure comes from, and the sampling of resident memory."""

import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.005


def machine() -> str:
    """Return date, versions and processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {torch.get_num_threads()} threads of {name}"


@dataclass
class Resident:
    """Anonymous resident bytes of this process at most, less those it had before."""

    bytes: int = 0


def anonymous() -> int:
    """Return the anonymous resident bytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@contextmanager
def resident_peak(before: int) -> Iterator[Resident]:
    """Sample the anonymous resident memory, less the bytes ``before``, in a thread of its own."""
    found, stop = Resident(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            found.bytes = max(found.bytes, anonymous() - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found.bytes = max(found.bytes, anonymous() - before)


def seconds(function: Callable[[], object], n: int = 3) -> float:
    """Return the least time of ``n`` runs after one that is not counted."""
    function()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
