"""What each choice in the shipped model is worth: the same small training with one choice changed at a time.

Radial scans of one kind (``training_scans.make_scan``), 120 to train on, six to validate, 400 steps from seed 0. Each
row is kept in build/ablation/, so that an interrupted run goes on. Writes benchmarks/results/ablation.md.
"""

import functools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from training_scans import SimulatedScans, make_scan

import blockkit as bk
from blockkit.mbdl import loss, optimizer
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.prepared import PreparedScans

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "ablation"
N_STEPS, SEEDS, VALIDATION_SEEDS = 400, range(1000, 1120), range(2000, 2006)
BASE = {"n_channels": 32, "n_layers": 4, "downsample": 2, "sees_gradient": True, "n_unrolls": 4, "shared": False}
CHOICES: dict[str, dict[str, object]] = {
    "base": {},
    "2 unrolls": {"n_unrolls": 2},
    "6 unrolls": {"n_unrolls": 6},
    "16 channels": {"n_channels": 16},
    "48 channels": {"n_channels": 48},
    "3 layers": {"n_layers": 3},
    "6 layers": {"n_layers": 6},
    "shared weights": {"shared": True},
    "no space to depth": {"downsample": 1, "n_channels": 16},
    "gradient not seen": {"sees_gradient": False},
    "loss on the last unroll only": {"recipe": "last"},
    "Adam for all weights": {"recipe": "adam"},
    "no mirrored scans": {"recipe": "as measured"},
}


@functools.cache
def scans_of(seeds: range) -> Sequence[bk.Scan]:
    """Return the scans of some seeds, in memory."""
    return list(SimulatedScans({make_scan: seeds}, ROOT / "build" / "training"))


@contextmanager
def prepared_once() -> Iterator[None]:
    """Prepare all scans, and let every ``fit`` within take what was prepared: all rows see the same data terms."""
    prepare, terms = PreparedScans.data_of, dict[int, DataTerm]()

    def remembered(self: PreparedScans, scan: bk.Scan) -> DataTerm:
        if id(scan) not in terms:
            terms[id(scan)] = prepare(self, scan)
        return terms[id(scan)]

    with patch.object(PreparedScans, "data_of", remembered):
        for seeds in (SEEDS, VALIDATION_SEEDS):
            for _ in PreparedScans("scans", scans_of(seeds), bk.UnrolledNetwork(bk.ResidualCNN(1, 2), 1)):
                pass
        yield


@contextmanager
def recipe(name: object) -> Iterator[None]:
    """Train in another way than ``fit`` does."""
    if name == "last":
        with patch.object(loss, "EARLIER_UNROLLS", 0.0):
            yield
    elif name == "adam":
        with patch.object(optimizer.KernelOptimizer, "is_kernel", staticmethod(lambda parameter: False)):
            yield
    else:
        yield


def train(changed: dict[str, object]) -> dict[str, float]:
    """Train one small model; return its size, its best validation PSNR and the seconds of a step."""
    chosen = BASE | changed
    torch.manual_seed(0)
    sizes = {name: chosen[name] for name in ("n_channels", "n_layers", "downsample", "sees_gradient")}
    regularizer = bk.ResidualCNN(**sizes)  # type: ignore[arg-type]
    model = bk.UnrolledNetwork(regularizer, int(str(chosen["n_unrolls"])), shared_weights=bool(chosen["shared"]))
    began = time.process_time()
    with recipe(chosen.get("recipe")), torch.autocast("cpu", dtype=torch.bfloat16):
        history = bk.fit(
            model,
            scans_of(SEEDS),
            validation=scans_of(VALIDATION_SEEDS),
            n_steps=N_STEPS,
            learning_rate=2e-3,
            augment=chosen.get("recipe") != "as measured",
        )
    return {
        "thousand weights": sum(p.numel() for p in model.parameters()) / 1000,
        "PSNR": max(value for _, value in history.validation),
        "CPU seconds": time.process_time() - began,
    }


def main() -> None:
    """Train what is not kept yet, print the rows as they come, and write the table."""
    KEPT.mkdir(parents=True, exist_ok=True)
    paths = {name: KEPT / f"{name}.json" for name in CHOICES}
    missing = [name for name, path in paths.items() if not path.exists()]
    with prepared_once() if missing else nullcontext():
        for name in missing:
            paths[name].write_text(json.dumps(train(CHOICES[name])))
            print(name, paths[name].read_text(), flush=True)
    rows = {name: json.loads(path.read_text()) for name, path in paths.items()}
    base = rows["base"]
    described = ", ".join(f"{name} {value}" for name, value in BASE.items())
    lines = [
        "# Ablation",
        "",
        f"`python tools/ablate.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}. Base: {described}. "
        f"{len(SEEDS)} scans, {N_STEPS} steps, bfloat16 in the regularizer; mean PSNR over {len(VALIDATION_SEEDS)} "
        "scans never trained on, at its best.",
        "",
        "| one choice changed | thousand weights | PSNR dB | against base | CPU time, base = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['thousand weights']:.0f} | {row['PSNR']:.2f} | {row['PSNR'] - base['PSNR']:+.2f} "
            f"| {row['CPU seconds'] / base['CPU seconds']:.2f} |"
        )
    (ROOT / "benchmarks" / "results" / "ablation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
