"""Image quality of the shipped model against tuned, converged compressed sensing, on phantoms never trained on.

Eight scans, seeds 3000 to 3007: 48 x 40 x 48, 4 coils, acceleration 8, noise 2 %. The weight of compressed sensing is
tuned on a ninth scan from 1e-5 to 1e-2; each test case then gets the best of that weight and its two neighbors, chosen
with the reference in hand, which favors compressed sensing. Its images are kept in build/quality/, so that a run that
was stopped goes on. Writes benchmarks/results/quality.md.
"""

import platform
import time
from pathlib import Path

import torch

import blockkit as bk

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "quality"
IMAGE_SHAPE, FINE_SHAPE = (48, 40, 48), (72, 60, 72)
TEST_SEEDS, VALIDATION_SEED = range(3000, 3008), 2999
REG_WEIGHTS = (1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 1e-3, 1e-2)
N_ITERATIONS = 400


def make_scan(seed: int) -> bk.Scan:
    """Simulate a test scan."""
    volume = bk.pulmonary_phantom(FINE_SHAPE, seed=seed)
    return bk.simulate_scan(volume, IMAGE_SHAPE, n_coils=4, n_spokes=452, noise=0.02, seed=seed)


def compressed_sensing(seed: int, reg_weight: float) -> torch.Tensor:
    """Reconstruct a seed's scan by compressed sensing, or take the image that is kept."""
    path = KEPT / f"cs_{seed}_{reg_weight:g}.pt"
    if not path.exists():
        scan = make_scan(seed)
        A = bk.Encoding(scan.trajectory, scan.maps)
        image = bk.compressed_sensing(A, scan.kspace, reg_weight=reg_weight, n_iterations=N_ITERATIONS)
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(image, path)
    return torch.load(path, weights_only=True)


def tuned_weights() -> tuple[float, ...]:
    """Return the best weight on the validation scan and its neighbors on the grid."""
    reference = make_scan(VALIDATION_SEED).reference
    scores = [bk.psnr(compressed_sensing(VALIDATION_SEED, weight), reference) for weight in REG_WEIGHTS]
    for weight, score in zip(REG_WEIGHTS, scores, strict=True):
        print(f"validation: weight {weight:g} gives {score:.2f} dB", flush=True)
    best = scores.index(max(scores))
    return REG_WEIGHTS[max(best - 1, 0) : best + 2]


@torch.no_grad()
def compare(seed: int, weights: tuple[float, ...], model: bk.UnrolledNetwork | None) -> list[object]:
    """Return one row of the table: PSNR and SSIM of gridding, compressed sensing and MBDL."""
    scan = make_scan(seed)
    A = bk.Encoding(scan.trajectory, scan.maps)
    images = [A.adjoint(A.dcf * scan.kspace)]
    candidates = [compressed_sensing(seed, weight) for weight in weights]
    images.append(max(candidates, key=lambda image: bk.psnr(image, scan.reference)))
    if model is not None:
        images.append(model(A, scan.kspace))
    scores = [(bk.psnr(image, scan.reference), bk.ssim(image, scan.reference)) for image in images]
    return [seed, *(score for pair in scores for score in pair)]


def main() -> None:
    """Print the table as it comes, and write it."""
    start = time.time()
    try:
        model = bk.pretrained()
    except FileNotFoundError:
        model = None
        print("No shipped weights yet: make train. Compressed sensing only.")
    weights = tuned_weights()
    rows = []
    for seed in TEST_SEEDS:
        rows.append(compare(seed, weights, model))
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in rows[-1]), flush=True)
    if model is None:
        return
    gains = [(row[5] - row[3], row[6] - row[4]) for row in rows]  # type: ignore[operator]
    lines = [
        "# MBDL against compressed sensing on phantoms never trained on",
        "",
        f"`python benchmarks/quality.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        f"{platform.machine()}, "
        f"{torch.get_num_threads()} threads; compressed sensing at {N_ITERATIONS} iterations, best of {weights}.",
        "",
        "| seed | gridding PSNR dB | SSIM | CS PSNR dB | SSIM | MBDL PSNR dB | SSIM | MBDL - CS dB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, (gain, _) in zip(rows, gains, strict=True):
        psnr_ssim = " | ".join(f"{row[i]:.2f} | {row[i + 1]:.3f}" for i in (1, 3, 5))
        lines.append(f"| {row[0]} | {psnr_ssim} | {gain:+.2f} |")
    smallest, least = min(gain for gain, _ in gains), min(gain for _, gain in gains)
    lines += ["", f"Smallest gain: {smallest:+.2f} dB PSNR, {least:+.3f} SSIM."]
    (ROOT / "benchmarks" / "results" / "quality.md").write_text("\n".join(lines) + "\n")
    print(lines[-1], f"({time.time() - start:.0f} s)")


if __name__ == "__main__":
    main()
