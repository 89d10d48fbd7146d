"""Resident memory of this process, sampled while something runs, and the memory that is free."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

SAMPLE_SECONDS = 0.002


class Growth(Protocol):
    """What takes the result."""

    resident_bytes: int | None


@contextmanager
def resident_growth(peak: Growth) -> Iterator[None]:
    """Sample the resident memory in a thread of its own."""
    start = resident()
    if start is None:
        yield
        return
    highest, stop = start, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not stop.wait(SAMPLE_SECONDS):
            highest = max(highest, resident() or 0)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        peak.resident_bytes = max(highest, resident() or 0) - start


def resident() -> int | None:
    """Return the resident bytes that belong to this process alone, or None where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        return None
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def give_back_heap() -> None:
    """Make the C library return freed memory to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be taken on a device, or None where it is not known (CPU, and not Linux)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min(free, _left_in_group(free))


def _left_in_group(free: int) -> int:
    """Return what a container's limit leaves, or ``free`` if there is no limit (control groups, version 2)."""
    try:
        most, now = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if most == "max" else max(0, int(most) - int(now))
    except (OSError, ValueError):
        return free
