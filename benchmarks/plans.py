"""Which block fits which machine: plans for the paper's sizes, from traces; nothing is allocated.

Eight coils and six unrolls at 300 x 200 x 300, and twenty coils and ten unrolls at 450 x 300 x 450; 20,000 spokes of
450 samples, ResidualCNN(32, 5). Prints the tables as they come and writes them to benchmarks/results/plans.md.
"""

import time
from pathlib import Path

import torch

import blockkit as bk

ROOT = Path(__file__).parent.parent
N_SAMPLES = 20_000 * 450
NETWORK = bk.ResidualCNN(32, 5)
SMALL = {"image_shape": (300, 200, 300), "n_coils": 8, "n_unrolls": 6}
LARGE = {"image_shape": (450, 300, 450), "n_coils": 20, "n_unrolls": 10}
LEAN = {"offload": "disk", "interpolated_maps": True}
CASES = (
    (SMALL, {}, (4, 6, 8, 16, 24)),
    (SMALL, LEAN, (4, 6, 8)),
    (LARGE, {}, (8, 12, 16, 24, 40, 80, 141)),
    (LARGE, LEAN, (8, 12, 16, 24)),
)


def row(sizes: dict[str, object], options: dict[str, object], budget: float) -> str:
    """Return a line of the table: what fits the budget, or what is missing."""
    start = time.perf_counter()
    try:
        found = bk.plan(**sizes, **options, n_samples=N_SAMPLES, network=NETWORK, budget_gib=budget)
    except ValueError as error:
        return f"| {budget} | none: {str(error).split('): ')[-1].split('. What')[0]} | | | |"
    block = " x ".join(map(str, found.block_shape))
    seconds = time.perf_counter() - start
    print(f"{budget} GiB ({seconds:.0f} s): {found}", flush=True)
    return f"| {budget} | {block} | {found.n_blocks} | {found.n_bytes / 2**30:.2f} | {found.work:.2f} |"


def main() -> None:
    """Print the tables, and write them."""
    lines = [
        "# Which block fits: a training step's plan",
        "",
        f"`python benchmarks/plans.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}; ResidualCNN(32, 5), "
        "20,000 spokes x 450 samples. GiB = 2^30 bytes, everything alive at the peak. Work: the regularizer's, over "
        "that of naive backprop.",
    ]
    for sizes, options, budgets in CASES:
        size = " x ".join(map(str, sizes["image_shape"]))  # type: ignore[arg-type]
        kept = ', offload="disk", interpolated maps' if options else ""
        lines += ["", f"## {size}, {sizes['n_coils']} coils, {sizes['n_unrolls']} unrolls{kept}", ""]
        lines += ["| budget GiB | block | blocks an unroll | takes GiB | work |", "| --- | --- | --- | --- | --- |"]
        print("\n".join(lines[-4:]), flush=True)
        for budget in budgets:
            lines.append(row(sizes, options, budget))
            print(lines[-1], flush=True)
    (ROOT / "benchmarks" / "results" / "plans.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
