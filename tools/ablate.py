"""What each choice in the shipped model is worth: the same small training with one choice changed at a time.

Radial scans of one kind (``training_scans.make_scan``), 120 to train on, six to validate, 400 steps from seed 0. Each
row is kept in build/ablation/, so that an interrupted run goes on. Writes benchmarks/results/ablation.md.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from training_scans import SimulatedScans, make_scan

import blockkit as bk
from blockkit.mbdl import loss, optimizer

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
    scans, validation = (
        SimulatedScans({make_scan: seeds}, ROOT / "build" / "training") for seeds in (SEEDS, VALIDATION_SEEDS)
    )
    began = time.process_time()
    with recipe(chosen.get("recipe")), torch.autocast("cpu", dtype=torch.bfloat16):
        history = bk.fit(
            model,
            scans,
            validation=validation,
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
    rows = {}
    for name, changed in CHOICES.items():
        path = KEPT / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(train(changed)))
        rows[name] = json.loads(path.read_text())
        print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
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
