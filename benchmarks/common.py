"""What the benchmarks share: the line that says where a figure comes from, a stopwatch, environments of peers."""

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import torch

from blockkit.mbdl.weights import SHIPPED

ROOT = Path(__file__).parent.parent


def machine() -> str:
    """Return date, versions and processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {torch.get_num_threads()} threads of {name}"


def command() -> str:
    """Return the command that runs now, as it is typed at the project's root."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def seconds(function: Callable[[], object], n: int = 3) -> float:
    """Return the least time of ``n`` runs after one that is not counted."""
    function()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def weights_name() -> str:
    """Return the first digits of the shipped weights' checksum."""
    return hashlib.sha256((files("blockkit_samples") / SHIPPED).read_bytes()).hexdigest()[:8]


def environment(name: str, packages: Sequence[str]) -> str:
    """Return the Python of build/peers/NAME, made with these packages if it is not there; RuntimeError if pip fails."""
    folder = ROOT / "build" / "peers" / name
    python = str(folder / "bin" / "python")
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install {', '.join(packages)}\n{done.stderr}")
        (folder / "ready").touch()
    return python
