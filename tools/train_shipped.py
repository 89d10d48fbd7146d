"""Train the weights that ship in data_samples/: seeded phantoms, seeded scans, resumable stages.

Each stage goes on from the weights of the one before, with the learning rate raised again (a warm restart). The first
two see radial scans of one kind; the third shows the regularizers the gradient too, and two thirds of its scans are of
any kind: :mod:`training_scans`. The fourth makes the hidden layers wider, and adds scans that leave little to do; the
fifth adds trajectories other than radial. The sixth is the longest: new scans of all these kinds, and of tissues and
textures that are no phantom, with less weight on the images of earlier unrolls; it ran on a GPU (``--device cuda``).
The seventh makes the layers wider again, on new scans, most of them radial. Both began from weights in 16 bits. The
weights that ship have their kernels in 8.

Scans and checkpoints are kept in build/training/, so that an interrupted run goes on where it stopped. A stage that
takes hours can be trained in sittings (``--minutes 100``): it ends in the same weights as at one go.
"""

import _thread
import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Timer
from unittest.mock import patch

import torch
from training_scans import (
    SimulatedScans,
    make_clean_scan,
    make_other_scan,
    make_scan,
    make_textured_scan,
    make_wide_scan,
)

import blockkit as bk
from blockkit.mbdl import loss
from blockkit.mbdl.weights import SHIPPED


@dataclass(frozen=True)
class Stage:
    """One run of ``fit``: the scans it sees, for how many steps, the regularizers' width and input, and the loss."""

    seeds: range
    n_steps: int
    learning_rate: float = 1.5e-3
    wide_seeds: range = range(0)
    clean_seeds: range = range(0)
    other_seeds: range = range(0)
    textured_seeds: range = range(0)
    sees_gradient: bool = False
    n_channels: int = 64
    earlier_unrolls: float = loss.EARLIER_UNROLLS
    from_16_bits: bool = False


STAGES = (
    Stage(range(1000, 1300), 2600),
    Stage(range(1000, 1400), 6500),
    Stage(range(1400, 1500), 3000, 8e-4, wide_seeds=range(5000, 5200), sees_gradient=True),
    Stage(
        range(1500, 1650),
        2800,
        1e-3,
        wide_seeds=range(5080, 5200),
        clean_seeds=range(7000, 7030),
        sees_gradient=True,
        n_channels=96,
    ),
    Stage(
        range(1500, 1650),
        1800,
        6e-4,
        wide_seeds=range(5100, 5180),
        clean_seeds=range(7000, 7030),
        other_seeds=range(8000, 8100),
        sees_gradient=True,
        n_channels=96,
    ),
    Stage(
        range(10000, 10450),
        13_000,
        1e-3,
        wide_seeds=range(12000, 12200),
        clean_seeds=range(13000, 13050),
        other_seeds=range(14000, 14120),
        textured_seeds=range(15000, 15180),
        sees_gradient=True,
        n_channels=96,
        earlier_unrolls=0.1,
        from_16_bits=True,
    ),
    Stage(
        range(16000, 16500),
        7500,
        6e-4,
        wide_seeds=range(17000, 17100),
        clean_seeds=range(18000, 18030),
        other_seeds=range(18500, 18540),
        textured_seeds=range(19000, 19130),
        sees_gradient=True,
        n_channels=128,
        earlier_unrolls=0.03,
        from_16_bits=True,
    ),
)
VALIDATION_SEEDS, WIDE_VALIDATION_SEEDS = range(2000, 2006), range(6000, 6006)
ROOT = Path(__file__).parent.parent


def make_model() -> bk.UnrolledNetwork:
    """Build the architecture of the first stages."""
    torch.manual_seed(0)
    regularizer = bk.ResidualCNN(64, 5, downsample=2)
    return bk.UnrolledNetwork(regularizer, 5, shared_weights=False)


@torch.no_grad()
def grown(model: bk.UnrolledNetwork, stage: Stage) -> bk.UnrolledNetwork:
    """Return a model as large as the stage wants it that gives the same images as ``model``.

    What is new takes its inputs with random weights and passes them on with weights of zero; the weights for the
    gradient, new inputs of the first layer, are zero too.
    """
    old = model.regularizers[0]
    if (old.sees_gradient, old.n_channels) == (stage.sees_gradient, stage.n_channels):
        return model
    torch.manual_seed(0)
    regularizer = bk.ResidualCNN(
        stage.n_channels, old.n_layers, downsample=old.downsample, sees_gradient=stage.sees_gradient
    )
    larger = bk.UnrolledNetwork(regularizer, model.n_unrolls, shared_weights=model.shared_weights)
    for name, value in larger.state_dict().items():
        known = model.state_dict()[name]
        value[tuple(map(slice, known.shape[:1]))] = 0
        value[tuple(map(slice, known.shape))] = known
    return larger


def scans_of(stage: Stage, work: Path) -> SimulatedScans:
    """Return the scans that a stage trains on."""
    return SimulatedScans(
        {
            make_scan: stage.seeds,
            make_wide_scan: stage.wide_seeds,
            make_clean_scan: stage.clean_seeds,
            make_other_scan: stage.other_seeds,
            make_textured_scan: stage.textured_seeds,
        },
        work,
    )


def validation_of(stage: Stage, work: Path) -> SimulatedScans:
    """Return the scans by which the best weights of a stage are chosen."""
    wide = WIDE_VALIDATION_SEEDS if stage.wide_seeds else ()
    return SimulatedScans({make_scan: VALIDATION_SEEDS, make_wide_scan: wide}, work)


@contextmanager
def at_most(minutes: float) -> Iterator[None]:
    """Do as Ctrl-C would after so many minutes: ``fit`` then ends between two steps, with its checkpoint written."""
    timer = Timer(60 * minutes, _thread.interrupt_main)
    if minutes < math.inf:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def train(work: Path, device: str = "cpu") -> tuple[bk.UnrolledNetwork, list[dict[str, list[float]]]]:
    """Take the steps that are left of all stages; return the model, and the log of each stage.

    Raises KeyboardInterrupt, with the step that was reached, where Ctrl-C or the time ends it.
    """
    model, log = make_model(), []
    for i, stage in enumerate(STAGES):
        if stage.from_16_bits:
            model = model.half().float()
        model = grown(model, stage).to(device)
        # half precision in the regularizer only: on a CPU convolutions take half the time, on a GPU it gains nothing
        half = torch.autocast("cpu", dtype=torch.bfloat16)
        with half, patch.object(loss, "EARLIER_UNROLLS", stage.earlier_unrolls):
            history = bk.fit(
                model,
                scans_of(stage, work),
                validation=validation_of(stage, work),
                n_steps=stage.n_steps,
                learning_rate=stage.learning_rate,
                augment=True,
                checkpoint=work / f"stage_{i}.safetensors",
                seed=i,
            )
        if history.interrupted:
            raise KeyboardInterrupt(f"in stage {i + 1} after {len(history.losses)} of {stage.n_steps} steps")
        losses = [round(error, 5) for error in history.losses]
        log.append({"losses": losses, "validation_psnr_db": history.validation})
    return model, log


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, train, and write weights and log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only-simulate", action="store_true", help="make the scans and stop")
    parser.add_argument("--device", default="cpu", help='where to train: "cuda" for a GPU (default: cpu)')
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many (default: at the end)")
    args = parser.parse_args(argv)
    work = ROOT / "build" / "training"
    work.mkdir(parents=True, exist_ok=True)
    if args.only_simulate:
        for stage in STAGES:
            for scan in chain(validation_of(stage, work), scans_of(stage, work)):
                print(scan, flush=True)
        return
    try:
        with at_most(args.minutes):
            model, log = train(work, args.device)
    except KeyboardInterrupt as error:
        print(f"Stopped {error}".rstrip() + ". The same command goes on.")
        return
    bk.save_weights(model, ROOT / "data_samples" / SHIPPED, compact=True)
    (ROOT / "data_samples" / "training_log.json").write_text(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
