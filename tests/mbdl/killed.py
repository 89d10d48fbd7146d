"""A training run, killed again and again: for ``test_survival``, in a process of its own, which forks.

Each child trains on from the checkpoint and is killed at a random moment. After each kill the checkpoint must be whole:
there is none yet, or its history is a beginning of that of a run that nobody killed, and its weights load. When a run
is complete, its weights and losses must be those of the other, bit for bit, and the next begins anew.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from blockkit.data.scan import Scan
from blockkit.mbdl import checkpoint
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.prepared import Prepared, PreparedScans
from blockkit.mbdl.progress import History
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, read_tensors
from tests.mbdl.small_scans import make_scan

N_KILLS, N_STEPS = 50, 20
SCANS = [make_scan(seed) for seed in range(2)]


def train(path: Path) -> tuple[UnrolledNetwork, History]:
    """Train, or go on, with the checkpoint written after every step."""
    torch.manual_seed(0)
    model = UnrolledNetwork(ResidualCNN(4, 2), 1)
    options = {"validation": SCANS[:1], "augment": True, "deterministic": True, "watch": lambda progress: None}
    return model, fit(model, SCANS, n_steps=N_STEPS, checkpoint=path, **options)


def prepare_once() -> None:
    """Let all children have the scans that the parent made ready, so that they are killed while they train."""
    make, made = PreparedScans.make, {}

    def take(scans: PreparedScans, scan: Scan, i: int, variant: int) -> tuple[Prepared, int]:
        if id(scan) not in made:
            made[id(scan)] = make(scans, scan, i, variant)
        return made[id(scan)]

    PreparedScans.make = take


def fork(path: Path) -> int:
    """Train in a child, and return its number."""
    number = os.fork()
    if not number:
        try:
            train(path)
        finally:
            os._exit(0)
    return number


def main(folder: Path) -> None:
    """Kill, look, and print how many runs became complete and at how many different steps they were killed."""
    torch.set_num_threads(1)
    checkpoint.SAVE_SECONDS = 0.0
    prepare_once()
    draw, path, n_complete, steps = random.Random(0), folder / "run.safetensors", 0, set()
    train(folder / "first.safetensors")  # loads what is loaded late
    begin = time.monotonic()
    expected, history = train(folder / "whole.safetensors")
    whole_seconds = time.monotonic() - begin
    whole = read_tensors(folder / "whole.safetensors")[0]
    for _ in range(N_KILLS):
        child = fork(path)
        time.sleep(draw.uniform(0, 0.7 * whole_seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not path.exists():
            continue
        load_model(path)
        found = json.loads(read_tensors(path)[1]["history"])
        n_steps, scores = len(found["losses"]), [tuple(score) for score in found["validation"]]
        assert found["losses"] == history.losses[:n_steps], "another loss"
        assert scores == [score for score in history.validation if score[0] <= n_steps], "another score"
        steps.add(n_steps)
        if n_steps == N_STEPS:
            model, again = train(path)
            assert again == history, "another history"
            pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "other weights"
            tensors = read_tensors(path)[0]
            assert all(torch.equal(value, tensors[name]) for name, value in whole.items()), "another file"
            path.unlink()
            n_complete += 1
    print(n_complete, len(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
