"""Fill the tables of docs/model_card.md from the weights file, the training script and benchmarks/results/.

A table stands between ``<!-- name -->`` and ``<!-- end -->``. Run this after the weights or a result have changed;
``tests/test_docs.py`` says when that was forgotten.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from train_shipped import STAGES

import blockkit as bk
from blockkit.mbdl.weights import SHIPPED

ROOT = Path(__file__).parent.parent
CARD = ROOT / "docs" / "model_card.md"
RESULTS = ROOT / "benchmarks" / "results"
KINDS = {"seeds": "radial", "wide_seeds": "any kind", "clean_seeds": "clean"}


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Write a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def read_table(text: str, *columns: str) -> list[list[str]]:
    """Return these columns of the first table that has them all."""
    head: list[str] = []
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("|") else []
        if cells and not head and set(columns) <= set(cells):
            head = cells
        elif cells and head and not cells[0].startswith("---"):
            found.append([cells[head.index(column)] for column in columns])
        elif not cells and head:
            break
    if not found:
        raise ValueError(f"no table with the columns {', '.join(columns)}")
    return found


def weights() -> str:
    """Say what the weights file holds."""
    path = ROOT / "data_samples" / SHIPPED
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["model"])
    model = bk.load_model(path)
    seen = bk.reach(model.regularizers[0])
    content = path.read_bytes()
    sizes = {"n_unrolls": said["n_unrolls"], "shared_weights": said["shared_weights"], "data_term": said["data_term"]}
    facts = {
        **sizes,
        **{f"regularizer, {name}": value for name, value in said["regularizer"].items()},
        "regularizer, reach in voxels (z, y, x)": f"{seen.radius}, stride {seen.stride}",
        "number of weights": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "stored as": stored_type(path),
        "read as": "float32",
        "file": f"`data_samples/{SHIPPED}`, {len(content):,} bytes",
        "sha256": f"`{hashlib.sha256(content).hexdigest()}`",
    }
    return table(["", ""], facts.items())


def stored_type(path: Path) -> str:
    """Return the types of the numbers in a weights file, without those of single numbers and vectors."""
    with safe_open(path, "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys() if file.get_tensor(name).ndim > 1}  # noqa: SIM118
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds or {torch.float32}))


def stages() -> str:
    """Say what each stage of the training saw."""
    rows = []
    for number, stage in enumerate(STAGES, start=1):
        seen = [f"{len(getattr(stage, seeds))} {kind}" for seeds, kind in KINDS.items() if getattr(stage, seeds)]
        other = sorted(name for name in set(vars(stage)) - set(KINDS) if name.endswith("_seeds"))
        seen += [f"{len(getattr(stage, name))} {name.removesuffix('_seeds')}" for name in other if getattr(stage, name)]
        gradient = "yes" if stage.sees_gradient else "no"
        rows.append([number, stage.n_steps, ", ".join(seen), stage.learning_rate, stage.n_channels, gradient])
    return table(["stage", "steps", "scans", "learning rate", "channels", "sees the gradient"], rows)


def quality() -> str:
    """Give the comparison with tuned compressed sensing at each acceleration."""
    columns, parts = ("method", "PSNR dB", "SSIM", "NRMSE"), []
    for text in (RESULTS / "quality.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        lead = re.findall(r"^- (?:PSNR dB|SSIM|NRMSE): mean lead.*$", text, re.MULTILINE)
        said = "\n\nMBDL minus the best other of each scan:\n\n" + "\n".join(lead)
        parts.append(f"**{text.splitlines()[0]}**\n\n{table(columns, read_table(text, *columns))}{said}")
    return "\n\n".join(parts)


def robustness() -> str:
    """Give the settings in which the weights were tried."""
    columns = ("setting", "CS dB", "MBDL dB", "MBDL - CS dB", "smallest", "CS SSIM", "MBDL SSIM")
    return table(columns, read_table((RESULTS / "robustness.md").read_text(encoding="utf-8"), *columns))


def speed() -> str:
    """Give PSNR against time."""
    columns = ("method", "seconds", "PSNR dB", "SSIM")
    return table(columns, read_table((RESULTS / "speed.md").read_text(encoding="utf-8"), *columns))


def ablation() -> str:
    """Give what small models lose or gain by one choice changed."""
    columns = ("one choice changed", "thousand weights", "PSNR dB", "against base", "CPU time, base = 1")
    return table(columns, read_table((RESULTS / "ablation.md").read_text(encoding="utf-8"), *columns))


def filled(text: str) -> str:
    """Return the card with each table made anew."""
    makers = {make.__name__: make for make in (weights, stages, ablation, quality, robustness, speed)}
    parts = re.split(r"(<!-- (?:\w+) -->\n.*?<!-- end -->)", text, flags=re.DOTALL)
    for i, part in enumerate(parts):
        if part.startswith("<!-- "):
            name = part.split()[1]
            parts[i] = f"<!-- {name} -->\n\n{makers[name]()}\n\n<!-- end -->"
    return "".join(parts)


if __name__ == "__main__":
    CARD.write_text(filled(CARD.read_text(encoding="utf-8")), encoding="utf-8")
