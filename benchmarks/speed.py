"""How long a whole reconstruction takes, and what it is worth: PSNR against time for MBDL and for each baseline.

One scan of a phantom never trained on: 96^3, 8 coils, acceleration 8, noise 2 %. Every point is a reconstruction of
its own, in a process of its own, timed from arrays in memory to the image: density compensation, kernel, bound of the
largest eigenvalue and gridding count for blockkit, set-up for the others. Start of the process, imports, SigPy's
compilation and reading of the scan do not count, except for BART, whose command is timed as a whole. MBDL's seconds
are the median of three. Baselines have the weights that quality.py found on smaller scans of the same kind;
blockkit's, which depends on the size, that of robustness.py. Iterations are doubled until that gains less than 0.1
dB, or until twice as many would take longer than ``--most-seconds`` and are not kept from an earlier run: then the
table says that the curve is not at its end. Points are kept in build/speed/, so that a run that was stopped goes on.
Run it on a quiet machine. Writes benchmarks/results/speed.md and the curves beside it, speed.svg. One point alone, at
another weight, is printed by ``speed.py --in-process bart_haar 200 1.5e-4``.
"""

import argparse
import functools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from baselines import BASELINES, Baseline
from common import ROOT, command, machine, weights_name
from matplotlib.figure import Figure

import blockkit as bk

KEPT = ROOT / "build" / "speed"
IMAGE_SHAPE, FINE_SHAPE, N_COILS = (96, 96, 96), (144, 144, 144), 8
TEST_SEED = 3000
TIMED = ("own_haar", "bart_haar", "bart_haar_weighted", "sigpy_wavelet")
OTHER_WEIGHTS = {"own_haar": 6.25e-7}  # a fraction of the largest coefficient: robustness.py's for 96 x 72 x 96
PRECISIONS, N_TIMES = ("single", "bfloat16"), 3
FIRST, MOST = 25, 1600
PLATEAU_DB = 0.1
IN_PROCESS = "--in-process"


def kept_scan() -> bk.Scan:
    """Return the scan, made and kept if it is not there."""
    path = KEPT / f"scan_{TEST_SEED}.h5"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        n_spokes = round(np.pi / 2 * max(IMAGE_SHAPE) ** 2 / 8)
        volume = bk.pulmonary_phantom(FINE_SHAPE, seed=TEST_SEED)
        scan = bk.simulate_scan(volume, IMAGE_SHAPE, n_coils=N_COILS, n_spokes=n_spokes, noise=0.02, seed=TEST_SEED)
        scan.save(path)
    return bk.load_scan(path)


def mbdl(precision: str) -> dict[str, float]:
    """Reconstruct by MBDL, once, and return seconds and scores."""
    scan, model = kept_scan(), bk.pretrained()
    half = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
    began = time.perf_counter()
    with torch.no_grad(), half:
        image = model(bk.Encoding(scan.trajectory, scan.maps), scan.kspace)
    return scores(image, scan, time.perf_counter() - began)


def scores(image: torch.Tensor, scan: bk.Scan, seconds: float) -> dict[str, float]:
    """Return what a point is."""
    return {"seconds": seconds, "psnr": bk.psnr(image, scan.reference), "ssim": bk.ssim(image, scan.reference)}


def path_of(name: str) -> Path:
    """Return where the point of this name is kept."""
    return KEPT / f"{name}.json"


def kept(name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the point kept by this name, or make it and keep it."""
    path = path_of(name)
    if not path.exists():
        path.write_text(json.dumps(make()))
        print(name, {key: round(value, 3) for key, value in json.loads(path.read_text()).items()}, flush=True)
    point: dict[str, float] = json.loads(path.read_text())
    return point


def apart(*what: str) -> dict[str, float]:
    """Return a point that a process of its own makes: a precision of MBDL, or a baseline's key and its iterations."""
    command = [sys.executable, __file__, IN_PROCESS, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    point: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return point


def median_of(precision: str) -> dict[str, float]:
    """Return the point of MBDL that took the median time."""
    points = [apart(precision) for _ in range(N_TIMES)]
    return sorted(points, key=lambda point: point["seconds"])[N_TIMES // 2]


def weight_of(baseline: Baseline) -> float:
    """Return the weight that suits a matrix of this size."""
    return OTHER_WEIGHTS.get(baseline.key, baseline.weight)


def baseline_point(key: str, n_iterations: str, weight: str = "") -> dict[str, float]:
    """Reconstruct by a baseline, once, and return seconds and scores."""
    scan = kept_scan()
    (baseline,) = (baseline for baseline in BASELINES if baseline.key == key)
    image, seconds = baseline.timed(scan, float(weight or weight_of(baseline)), int(n_iterations))
    return scores(image, scan, seconds)


def curve(baseline: Baseline, most_seconds: float) -> dict[int, dict[str, float]]:
    """Return a baseline's points by number of iterations, up to its plateau."""

    def name(n: int) -> str:
        return f"{baseline.key}_{TEST_SEED}_{weight_of(baseline):g}_{n}"

    def point(n: int) -> dict[str, float]:
        return kept(name(n), functools.partial(apart, baseline.key, str(n)))

    points, n = {FIRST: point(FIRST)}, FIRST
    while n < MOST and (2 * points[n]["seconds"] <= most_seconds or path_of(name(2 * n)).exists()):
        n *= 2
        points[n] = point(n)
        if points[n]["psnr"] - points[n // 2]["psnr"] < PLATEAU_DB:
            break
    return points


def converged(points: dict[int, dict[str, float]]) -> int | None:
    """Return the least iterations within 0.1 dB of the plateau, or None if there was none."""
    if len(points) < 2:
        return None
    *_, before, last = points
    if points[last]["psnr"] - points[before]["psnr"] >= PLATEAU_DB:
        return None
    best = max(point["psnr"] for point in points.values())
    return next(n for n, point in points.items() if point["psnr"] > best - PLATEAU_DB)


def draw(curves: dict[str, list[dict[str, float]]]) -> None:
    """Draw PSNR against time for each method."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        seconds, psnr = ([point[key] for point in points] for key in ("seconds", "psnr"))
        axes.semilogx(seconds, psnr, "o-", label=name)
    axes.set(xlabel="seconds of a whole reconstruction", ylabel="PSNR (dB)")
    axes.grid(which="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(ROOT / "benchmarks" / "results" / "speed.svg", metadata={"Date": None})


def row(name: str, point: dict[str, float], note: str) -> str:
    return f"| {name} | {point['seconds']:.1f} | {point['psnr']:.2f} | {point['ssim']:.3f} | {note} |"


def compare(name: str, points: dict[int, dict[str, float]], ours: dict[str, dict[str, float]]) -> str:
    """Say how much faster MBDL is, and what its image is worth beside the baseline's."""
    there = converged(points)
    n = there or max(points)
    ratio = [points[n]["seconds"] / point["seconds"] for point in ours.values()]
    gain = min(point["psnr"] for point in ours.values()) - points[n]["psnr"]
    when = f"at {n} iterations, " + ("where it has converged" if there else "where it has not converged yet")
    return f"{name}, {when}: MBDL is {ratio[0]:.1f} x faster, {ratio[1]:.1f} x in bfloat16, and {gain:+.2f} dB."


def main() -> None:
    """Measure what is not kept yet, and write the table."""
    if sys.argv[1:2] == [IN_PROCESS]:
        name, *how = sys.argv[2:]
        print(json.dumps(baseline_point(name, *how) if how else mbdl(name)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--most-seconds", type=float, default=math.inf, help="of one reconstruction")
    most_seconds = parser.parse_args().most_seconds
    ours = {
        precision: kept(f"mbdl_{weights_name()}_{precision}", functools.partial(median_of, precision))
        for precision in PRECISIONS
    }
    size = " x ".join(map(str, IMAGE_SHAPE))
    lines = [
        "# PSNR against time",
        "",
        f"`{command()}`, {machine()}; {size}, {N_COILS} coils, acceleration 8, noise 2 %.",
    ]
    lines += ["", "| method | seconds | PSNR dB | SSIM | |", "| --- | --- | --- | --- | --- |"]
    lines += [row(f"MBDL, {precision}", point, "") for precision, point in ours.items()]
    curves = {"MBDL": [ours["single"]], "MBDL, bfloat16": [ours["bfloat16"]]}
    ratios = []
    for baseline in BASELINES:
        if baseline.key not in TIMED:
            continue
        if (why := baseline.missing()) is not None:
            lines.append(f"| {baseline.name} | | | | skipped: {why} |")
            continue
        points = curve(baseline, most_seconds)
        curves[baseline.name] = list(points.values())
        for n, point in points.items():
            note = "converged" if n == converged(points) else ""
            lines.append(row(f"{baseline.name}, weight {weight_of(baseline):g}, {n} iterations", point, note))
        ratios.append(compare(baseline.name, points, ours))
    lines += ["", *(f"- {line}" for line in ratios), "", "![PSNR against time](speed.svg)"]
    draw(curves)
    (ROOT / "benchmarks" / "results" / "speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(ratios))


if __name__ == "__main__":
    main()
