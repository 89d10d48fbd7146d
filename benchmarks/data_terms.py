"""Which data term should the unrolled network use: unweighted, density-weighted, or conjugate gradient?

The same small network is trained from the same seed on the same scans for the same number of steps with each; PSNR on
scans never trained on, before and after, and seconds a step. Writes benchmarks/results/data_terms.md.
"""

import time
from pathlib import Path

import torch

import blockkit as bk
from blockkit.mbdl.data_consistency import DATA_TERMS, prepare

ROOT = Path(__file__).parent.parent
IMAGE_SHAPE, FINE_SHAPE = (32, 28, 32), (48, 42, 48)
N_TRAINING, N_TEST, N_STEPS = 12, 4, 150


def make_scan(seed: int) -> bk.Scan:
    """Simulate a scan at acceleration 8, 3 coils, noise 2 %."""
    volume = bk.pulmonary_phantom(FINE_SHAPE, seed=seed)
    return bk.simulate_scan(volume, IMAGE_SHAPE, n_coils=3, n_spokes=201, noise=0.02, seed=seed)


@torch.no_grad()
def mean_psnr(model: bk.UnrolledNetwork, scans: list[bk.Scan]) -> float:
    """Return the mean PSNR of a model over scans, in dB."""
    operators = [bk.Encoding(scan.trajectory, scan.maps) for scan in scans]
    images = [model(A, scan.kspace) for A, scan in zip(operators, scans, strict=True)]
    return sum(bk.psnr(image, scan.reference) for image, scan in zip(images, scans, strict=True)) / len(scans)


def main() -> None:
    """Print the table as it comes, and write it."""
    training, test = ([make_scan(seed + i) for i in range(n)] for seed, n in ((100, N_TRAINING), (3000, N_TEST)))
    A = bk.Encoding(test[0].trajectory, test[0].maps)
    with torch.no_grad():
        start = prepare(A, test[0].kspace)
    lines = [
        "# Data terms",
        "",
        f"`python benchmarks/data_terms.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}; {IMAGE_SHAPE}, "
        f"acceleration 8, 3 coils, noise 2 %, 3 unrolls, ResidualCNN(24, 4, downsample=2), {N_TRAINING} training "
        f"scans, {N_STEPS} steps, mean over {N_TEST} test scans. Gridding start of the first: "
        f"{bk.psnr(start.start * start.scale, test[0].reference):.2f} dB.",
        "",
        "| data term | untrained, dB | trained, dB | seconds a step |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines[2:]), flush=True)
    for data_term in DATA_TERMS:
        torch.manual_seed(0)
        regularizer = bk.ResidualCNN(24, 4, downsample=2)
        model = bk.UnrolledNetwork(regularizer, 3, shared_weights=False, data_term=data_term)
        before, began = mean_psnr(model, test), time.time()
        bk.fit(model, training, n_steps=N_STEPS)
        seconds = (time.time() - began) / N_STEPS
        lines.append(f"| {data_term} | {before:.2f} | {mean_psnr(model, test):.2f} | {seconds:.2f} |")
        print(lines[-1], flush=True)
    (ROOT / "benchmarks" / "results" / "data_terms.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
