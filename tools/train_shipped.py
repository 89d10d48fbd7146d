"""Train the weights that ship in data_samples/: seeded phantoms, seeded scans, two resumable stages.

The second stage goes on from the weights of the first, at full learning rate again (a warm restart), with more scans
and more steps. Scans and checkpoints are kept in build/training/, so that an interrupted run goes on where it stopped.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import blockkit as bk
from blockkit.mbdl.weights import SHIPPED


@dataclass(frozen=True)
class Stage:
    """One run of ``fit``: the phantoms it sees, and for how many steps."""

    seeds: range
    n_steps: int


STAGES = (Stage(range(1000, 1300), 2600), Stage(range(1000, 1400), 6500))
VALIDATION_SEEDS = range(2000, 2006)
IMAGE_SHAPES = ((48, 40, 48), (44, 44, 40), (56, 42, 56), (52, 40, 52))
SHAPE_ODDS = (0.4, 0.2, 0.25, 0.15)
ROOT = Path(__file__).parent.parent


class SimulatedScans(Sequence[bk.Scan]):
    """Scans of one phantom a seed, with matrix, coils, spokes and noise drawn from the seed, kept in a folder."""

    def __init__(self, seeds: range, folder: Path) -> None:
        self.seeds, self.folder = seeds, folder
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, i: int) -> bk.Scan:
        path = self.folder / f"scan_{self.seeds[i]}.h5"
        if not path.exists():
            make_scan(self.seeds[i]).save(path)
        return bk.load_scan(path)


def make_scan(seed: int) -> bk.Scan:
    """Simulate the scan of a seed: acceleration 4 to 16, 2 to 8 coils, noise 0.7 to 4 %, phantom 1.5 x finer."""
    rng = np.random.default_rng(seed)
    shape = IMAGE_SHAPES[rng.choice(len(IMAGE_SHAPES), p=SHAPE_ODDS)]
    fine = tuple(round(1.5 * n) for n in shape)
    acceleration = float(np.exp(rng.uniform(np.log(4), np.log(16))))
    n_spokes = round(np.pi / 2 * max(shape) ** 2 / acceleration)
    noise = float(np.exp(rng.uniform(np.log(0.007), np.log(0.04))))
    volume = bk.pulmonary_phantom(fine, seed=seed) * float(np.exp(rng.uniform(-1, 1)))
    n_coils = int(rng.integers(2, 9))
    return bk.simulate_scan(volume, shape, n_coils=n_coils, n_spokes=n_spokes, noise=noise, seed=seed)


def make_model() -> bk.UnrolledNetwork:
    """Build the architecture that ships."""
    torch.manual_seed(0)
    regularizer = bk.ResidualCNN(64, 5, downsample=2)
    return bk.UnrolledNetwork(regularizer, 5, shared_weights=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, train, and write weights and log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only-simulate", action="store_true", help="make the scans and stop")
    args = parser.parse_args(argv)
    work = ROOT / "build" / "training"
    validation = SimulatedScans(VALIDATION_SEEDS, work)
    if args.only_simulate:
        for scan in chain(validation, *(SimulatedScans(stage.seeds, work) for stage in STAGES)):
            print(scan, flush=True)
        return
    model = make_model()
    log = []
    for i, stage in enumerate(STAGES):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # in the regularizer only: convolutions take half the time
            history = bk.fit(
                model,
                SimulatedScans(stage.seeds, work),
                validation=validation,
                n_steps=stage.n_steps,
                learning_rate=1.5e-3,
                augment=True,
                checkpoint=work / f"stage_{i}.safetensors",
                seed=i,
            )
        if history.interrupted:
            print("Stopped. The same command goes on.")
            return
        losses = [round(loss, 5) for loss in history.losses]
        log.append({"losses": losses, "validation_psnr_db": history.validation})
    bk.save_weights(model, ROOT / "data_samples" / SHIPPED)
    (ROOT / "data_samples" / "training_log.json").write_text(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
