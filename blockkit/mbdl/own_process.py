"""A real step in a process of its own, under a memory limit: what was predicted, counted, and taken."""

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path

from blockkit.blockwise.memory import measure_peak
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3
from blockkit.mbdl.closed_form import step_bytes, work_factor
from blockkit.mbdl.footprint import Case, run_from_nothing
from blockkit.mbdl.network_bytes import NetworkBytes, computing_in
from blockkit.mbdl.unrolled import UnrolledNetwork

SHARES = (1.0, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06)
MOST_OPERATIONS = 3e11  # of the regularizer in a step: seconds on a few cores
MOST_BYTES = 2**30  # of naive backprop, if so much is free
ROOM = 2**29  # bytes beyond what is predicted that the process may map: scratch, threads
TINY = 16  # voxels on a side
CHILD = "from blockkit.mbdl.own_process import run_job; run_job()"


@dataclass(frozen=True)
class Taken:
    """What a process said of its step: bytes that were counted, growth of its resident memory, seconds."""

    n_bytes: int
    resident_bytes: int | None
    seconds: float


def scaled_down(
    network: NetworkBytes, case: Case, n_unrolls: int, block_shape: Shape3, *, most_bytes: int = MOST_BYTES
) -> tuple[Case, Shape3]:
    """Return the same step on a smaller volume, with a block that is smaller alike, such as a machine can run at once.

    Parameters
    ----------
    network, case, n_unrolls, block_shape
        As in :func:`~blockkit.mbdl.closed_form.step_bytes`.
    most_bytes
        That naive backprop may take.

    Returns
    -------
    tuple
        The case and the block: every axis, and the samples in proportion to the voxels, by one factor.
    """
    for share in SHARES:
        shape = _scaled(case.image_shape, share, network)
        n_samples = max(1000, round(case.n_samples * prod(shape) / prod(case.image_shape)))
        small, block = replace(case, image_shape=shape, n_samples=n_samples), _scaled(block_shape, share, network)
        rounds = 3 if case.training else 1
        work = 2 * rounds * n_unrolls * prod(shape) * network.weights / 4 * (1 + work_factor(network, small, block))
        if work <= MOST_OPERATIONS and step_bytes(network, small, n_unrolls).bytes <= most_bytes:
            break
    return small, block


def _scaled(shape: Shape3, share: float, network: NetworkBytes) -> Shape3:
    sizes = (round_up(max(2, ceil(n * share)), s) for n, s in zip(shape, network.stride, strict=True))
    z, y, x = (min(size, round_up(n, s)) for size, n, s in zip(sizes, shape, network.stride, strict=True))
    return z, y, x


def run_in_own_process(
    model: UnrolledNetwork, case: Case, *, precision: str = "single", limit: int | None = None, timeout: float = 300
) -> Taken:
    """Take a real step, on a scan of zeros, in another Python with a memory limit.

    Parameters
    ----------
    model
        Its class must be one that another Python can import.
    case
        What to run it on.
    precision
        ``"half"`` runs it inside autocast; else it computes in the precision of ``case`` and ``model``.
    limit
        Bytes that the process may map beyond what it has after a first, tiny step. None: no limit.
    timeout
        In seconds.

    Raises
    ------
    MemoryError
        If the process hit the limit.
    ValueError
        If the network cannot be sent to another process.
    RuntimeError
        If the process failed, or took longer than ``timeout``.
    """
    try:
        job = pickle.dumps((model, case, precision, limit))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"The network cannot be sent to another process: {error}. Define it in a module.") from error
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CHILD]
    try:
        done = subprocess.run(command, input=job, capture_output=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"The step took longer than {timeout:g} s. Choose a smaller network or fewer unrolls."
        ) from None
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not said:
        raise _what_went_wrong(done.stderr.decode(errors="replace"), done.returncode, limit)
    return Taken(**json.loads(said[-1]))


def _what_went_wrong(stderr: str, code: int, limit: int | None) -> Exception:
    last = (stderr.strip().splitlines() or [f"exit status {code}"])[-1]
    full = any(word in stderr for word in ("MemoryError", "allocate", "out of memory")) or code in (-9, 137)
    if full and limit is not None:
        return MemoryError(f"The step hit its limit of {limit / 2**20:.0f} MiB, and its process ended.")
    if "Can't get attribute" in stderr or "ModuleNotFoundError" in stderr:
        return ValueError(
            f"Another Python cannot import the network ({last}). Define it in a module, not in the notebook."
        )
    return RuntimeError(f"The step failed in its process: {last}")


def run_job() -> None:
    """Read a model and a case from stdin, take a step, and write what it took to stdout: for the other Python."""
    model, case, precision, limit = pickle.loads(sys.stdin.buffer.read())
    z, y, x = (min(n, TINY) for n in case.image_shape)
    tiny = replace(case, image_shape=(z, y, x), n_samples=1000)
    with computing_in(precision):
        run_from_nothing(model, tiny)  # loads what is loaded late
        model.zero_grad(set_to_none=True)
        if limit is not None:
            _limit(limit)
        start = time.perf_counter()
        with measure_peak() as peak:
            run_from_nothing(model, case)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    seconds = time.perf_counter() - start
    taken = {"n_bytes": peak.bytes + weights, "resident_bytes": peak.resident_bytes, "seconds": seconds}
    print(json.dumps(taken), flush=True)


def _limit(n_bytes: int) -> None:
    """Let this process map ``n_bytes`` more than now; where the system knows no such limit, there is none."""
    try:
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return
