"""Peak memory of one training step, naive and block-wise: predicted at any size, and counted where it fits.

The network is ResidualCNN(32, 5): 32 real channels, 5 layers. The encoding operator is stood in for by a copy of the
image, so the figures are those of the unrolls without the NUFFT's workspace. Prints a table and writes it to
benchmarks/results/memory.md.
"""

import time
from pathlib import Path

import torch

import blockkit as bk
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.loss import relative_error

ROOT = Path(__file__).parent.parent
BLOCK = (64, 64, 64)
CASES = (((64, 64, 64), 2, True), ((96, 80, 96), 2, True), ((300, 200, 300), 6, False), ((450, 300, 450), 6, False))


def make_step(image_shape: tuple[int, ...], n_unrolls: int, block_shape: tuple[int, int, int] | None):
    """Return a function that runs one training step, forward and backward."""
    model = bk.UnrolledNetwork(bk.ResidualCNN(32, 5), n_unrolls, block_shape=block_shape)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        start = torch.zeros(image_shape, dtype=torch.complex64)
        data = DataTerm(torch.clone, torch.zeros_like(start), start, torch.ones(()))
        relative_error(model.unroll(data), torch.ones_like(start)).backward()

    return step


def main() -> None:
    """Print the table as it comes, and write it."""
    lines = [
        "# Peak memory of a training step, naive and block-wise",
        "",
        f"`python benchmarks/memory.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}; ResidualCNN(32, 5), "
        f"blocks of {BLOCK}, GiB = 2^30 bytes, without the NUFFT's workspace.",
        "",
        "| image | unrolls | naive, predicted | naive, counted | blocks, predicted | blocks, counted | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines[2:]), flush=True)
    for shape, n_unrolls, fits in CASES:
        cells, predicted = [], []
        for block_shape in (None, BLOCK):
            step = make_step(shape, n_unrolls, block_shape)
            predicted.append(bk.predict_peak(step))
            cells.append(f"{predicted[-1] / 2**30:.3f}")
            with bk.measure_peak() as peak:
                if fits:
                    step()
            cells.append(f"{peak.bytes / 2**30:.3f}" if fits else "not run")
            if fits and peak.bytes != predicted[-1]:
                cells[-1] += " (differs)"
        size = " x ".join(map(str, shape))
        lines.append(f"| {size} | {n_unrolls} | {' | '.join(cells)} | {predicted[0] / predicted[1]:.1f} |")
        print(lines[-1], flush=True)
    (ROOT / "benchmarks" / "results" / "memory.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
