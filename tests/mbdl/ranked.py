"""A training script as a user writes it, for ``test_ranks``: run plainly, or under ``torchrun`` by each process."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from blockkit.data.scan import Scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.progress import Progress
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import read_tensors, write_tensors
from tests.mbdl.small_scans import make_scan

N_SCANS = 5


class Scans(Sequence[Scan]):
    """Scans made when asked for; one of them is bad, or something happens to the second process at its second."""

    def __init__(self, harm: str, rank: int) -> None:
        self.harm, self.does_harm, self.n_asked = harm, rank == 1, 0

    def __len__(self) -> int:
        return N_SCANS

    def __getitem__(self, i: int) -> Scan:  # type: ignore[override]
        self.n_asked += 1
        if self.harm == "bad" and i == 2:
            raise OSError("a bad sector")
        if self.harm == "error" and self.does_harm and self.n_asked == 2:
            raise ZeroDivisionError("on one process alone")
        if self.harm == "signal" and self.does_harm and self.n_asked == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_scan(i)


def train(place: Path, name: str, *, harm: str = "", **options: object) -> None:
    """Train, and write what became of it to files that are named after the case and the process."""
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(rank)  # the weights of the first process are to count
    model = UnrolledNetwork(ResidualCNN(4, 2), 2, block_shape=(5, 4, 8))
    validation = [make_scan(seed) for seed in range(10, 13)]
    told: list[int] = []
    if harm == "arguments":
        options["seed"] = rank

    def watch(progress: Progress) -> None:
        told.append(progress.step)

    said: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = fit(model, Scans(harm, rank), validation=validation, watch=watch, augment=True, **options)
            said = dict(vars(history))
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"
    said |= {"told": told, "warned": [str(one.message) for one in caught if one.category is RuntimeWarning]}
    path = Path(str(options.get("checkpoint")))
    if path.exists():  # it is whole when fit ends, on each process
        said["saved"] = len(json.loads(read_tensors(path)[1]["history"])["losses"])
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    tensors |= {f"{key}.grad": p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    (place / f"{name}.{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    write_tensors(place / f"{name}.{rank}.safetensors", tensors, {})


if __name__ == "__main__":
    for case, options in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]), case, **options)
