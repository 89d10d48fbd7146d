"""Who is at which scan: claims in files, by which processes of one machine or many share a folder without talking."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

BEAT_SECONDS = 20.0  # between two signs of life
LEASE_SECONDS = 300.0  # without one, after which a claim from another machine is free


class Claims:
    """The claims that this process holds, each a file; left, it gives them back.

    A claim names its machine and process, and its time moves on while that process lives. It is free again if its
    process is gone, on this machine, or if its time has stood still for :data:`LEASE_SECONDS` by this process's own
    clock, so that no two clocks are compared. Two that take a free one at the same moment may both have it: then a
    scan is reconstructed twice, with the same result.
    """

    def __init__(self) -> None:
        self._name = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
        self._key = uuid.uuid4().hex
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}  # time of a claim, and when it was first seen with it
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claims":
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        for path in list(self._held):
            self.give_back(path)

    def take(self, path: Path) -> bool:
        """Take a claim, unless another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.remove_if_free(path)
        self._held.add(path)
        try:
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            self._held.discard(path)
            return False
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump({**self._name, "key": self._key}, file)
        return True

    def give_back(self, path: Path) -> None:
        """Give a claim back, if it is still this process's."""
        if _read(path).get("key", self._key) == self._key:
            with contextlib.suppress(OSError):
                path.unlink()
        self._held.discard(path)

    def remove_if_free(self, path: Path) -> bool:
        """Remove a claim that is there and free, which a process has left that ended early; tell whether there was."""
        if not path.exists() or self.owner(path) is not None:
            return False
        with contextlib.suppress(OSError):
            path.unlink()
        return True

    def owner(self, path: Path) -> str | None:
        """Return who has a claim, in words; None if it is free."""
        try:
            moved = path.stat().st_mtime_ns
        except OSError:
            return None
        found, now = _read(path), time.monotonic()
        if found.get("key") == self._key:
            return "this process"
        host, pid = found.get("host", "a machine"), found.get("pid", 0)
        if host == self._name["host"] and not _lives(pid, found.get("born", "")):
            return None
        before, since = self._seen.get(path, (None, now))
        if before != moved:
            self._seen[path] = moved, now
        elif now - since > LEASE_SECONDS:
            return None
        return f"process {pid} on {host}"

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # gone, or not yet written
        return {}
    return found if isinstance(found, dict) else {}


def _lives(pid: object, born: object) -> bool:
    """Tell whether a process of this machine lives; True where that cannot be told."""
    if not isinstance(pid, int) or pid < 1 or os.name != "posix":
        return True
    if born:
        return _born(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _born(pid: int) -> str:
    """Return when a process was started, in the system's own count; empty if it is gone, or there is no /proc."""
    try:
        state, *more = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else more[18]
