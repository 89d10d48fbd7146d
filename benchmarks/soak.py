"""Does anything grow? 10,000 block-wise training steps and 2,000 reconstructions in one process, watched as they go.

Small volumes of mixed sizes, blocks, coils, engines and methods; each reconstruction makes its operator anew. Sampled
after whole rounds of the mix: counted bytes of one step, resident memory, open file descriptors, tensors alive, objects
that the garbage collector knows, and processor time a step. Printed: the slope of each after the first tenth
(Theil-Sen, the median over all pairs of samples), and whether it keeps its limit. A run at full length writes
benchmarks/results/soak.md and takes about ten minutes. A shortened one only prints: caches still fill, and noise is not
averaged, so its verdicts mean little. Fails if anything grows.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import median

import torch
from common import ROOT, machine
from torch import Tensor
from torch.nn.functional import mse_loss

import blockkit as bk
from blockkit.blockwise.resident import give_back_heap, resident
from blockkit.physics.solvers import conjugate_gradient

N_STEPS, N_RECONSTRUCTIONS, N_SAMPLES = 10_000, 2_000, 100
TRAININGS = (  # volume (z, y, x), block, blocks at once, recompute
    ((16, 14, 16), (8, 8, 8), None, True),
    ((12, 12, 20), (10, 10, 10), 1, True),
    ((18, 12, 12), (9, 9, 9), None, False),
    ((10, 10, 10), (10, 10, 10), None, True),
    ((12, 20, 14), (6, 10, 14), 4, True),
)
SCANS = (((16, 14, 16), 1), ((14, 18, 12), 4), ((20, 16, 18), 3))  # image (z, y, x), coils
METHODS = ("MBDL", "gridding", "CG", "compressed sensing")
# Which scan, engine and normal operator, and which method. torchkbnufft, twenty times as slow as the rest, only once.
RECONSTRUCTIONS = (
    *product(METHODS, (0, 1, 2), ("finufft",), ("nufft", "toeplitz")),
    ("CG", 0, "torchkbnufft", "nufft"),
)
DESCRIPTORS = Path("/proc/self/fd")
# What is watched, its unit, and how much of it a step may add. The smallest volume of a step has 8000 bytes, the
# smallest image 24,192: one of them kept in four steps is seen.
MEASURES = (
    ("counted peak of one step", "bytes", 0.0),
    ("resident memory, free heap given back", "bytes", 2000.0),
    ("open file descriptors", "", 0.001),
    ("tensors alive", "", 0.001),
    ("objects known to the garbage collector", "", 0.01),
)
TIME_LIMIT = 2.0  # % a 1000 steps

Sample = tuple[float, ...]  # the step, the values of MEASURES, processor seconds a step since the sample before


def slope(steps: Sequence[float], values: Sequence[float], left_out: float = 0.1) -> float:
    """Return the median slope over all pairs of samples (Theil-Sen) after this part of the steps."""
    kept = [(n, value) for n, value in zip(steps, values, strict=True) if n > left_out * steps[-1]]
    slopes = [(value - earlier) / (n - m) for (m, earlier), (n, value) in combinations(kept, 2)]
    if not slopes:
        raise ValueError(f"{len(kept)} of {len(steps)} samples are left, expected at least 2. Ask for more steps.")
    return median(slopes)


def watch(do: Callable[[int], object], n_steps: int, n_mix: int) -> Iterator[Sample]:
    """Do the steps, in whole rounds of so many kinds, and yield samples on the way."""
    every = n_mix * max(1, round(n_steps / N_SAMPLES / n_mix))
    for first in range(0, n_steps, every):
        start = time.process_time()
        for i in range(first, first + every):
            do(i)
        seconds = (time.process_time() - start) / every
        with bk.measure_peak() as peak:
            do(0)
        yield first + every, peak.bytes, *alive(), seconds


def alive() -> tuple[int, int, int, int]:
    """Return the resident bytes, and the numbers of open descriptors, of tensors and of objects, garbage collected."""
    gc.collect()
    objects = gc.get_objects()
    n_tensors = sum(issubclass(type(one), Tensor) for one in objects)
    n_objects = len(objects)
    del objects
    give_back_heap()
    return resident() or 0, len(os.listdir(DESCRIPTORS)), n_tensors, n_objects


def training() -> Callable[[int], None]:
    """Make the training step: denoise a volume in blocks, with fresh noise, and step the optimizer."""
    torch.manual_seed(0)
    network = bk.ResidualCNN(4, 3)
    optimizer = torch.optim.Adam(network.parameters())
    targets = [torch.view_as_real(bk.pulmonary_phantom(case[0])).movedim(-1, 0) for case in TRAININGS]

    def step(i: int) -> None:
        target, (_, block, at_once, recompute) = targets[i % len(targets)], TRAININGS[i % len(TRAININGS)]
        noisy = target + 0.1 * torch.randn_like(target)
        optimizer.zero_grad()
        denoised = bk.apply_blockwise(network, noisy, block, blocks_at_once=at_once, recompute=recompute)
        mse_loss(denoised, target).backward()
        optimizer.step()

    return step


def reconstruction() -> Callable[[int], None]:
    """Make the reconstruction: an operator of its own, then one of the methods."""
    volumes = [bk.pulmonary_phantom(tuple(n * 3 // 2 for n in shape)) for shape, _ in SCANS]
    scans = [
        bk.simulate_scan(volume, shape, n_coils=n_coils, n_spokes=24)
        for volume, (shape, n_coils) in zip(volumes, SCANS, strict=True)
    ]
    methods: dict[str, Callable[[bk.Encoding, Tensor], Tensor]] = {
        "MBDL": bk.UnrolledNetwork(bk.ResidualCNN(4, 3), 2, block_shape=(10, 10, 10)),
        "gridding": lambda A, kspace: A.adjoint(A.dcf * kspace),
        "CG": lambda A, kspace: conjugate_gradient(A.normal, A.adjoint(kspace), n_iterations=4),
        "compressed sensing": lambda A, kspace: bk.compressed_sensing(A, kspace, n_iterations=4),
    }

    @torch.no_grad()
    def reconstruct(i: int) -> None:
        method, which, engine, normal = RECONSTRUCTIONS[i % len(RECONSTRUCTIONS)]
        scan = scans[which]
        methods[method](bk.Encoding(scan.trajectory, scan.maps, engine=engine, normal=normal), scan.kspace)

    return reconstruct


def rows(samples: Sequence[Sample]) -> Iterator[tuple[str, bool]]:
    """Yield the rows of a table, and whether each keeps its limit."""
    steps, *columns, seconds = zip(*samples, strict=True)
    ms = [1000 * value for value in seconds]
    later = [n > 0.1 * steps[-1] for n in steps].index(True)
    measured = [(*measure, slope(steps, values), values) for measure, values in zip(MEASURES, columns, strict=True)]
    of_time = 100 * 1000 * slope(steps, ms) / median(ms[later:])
    for name, unit, limit, rise, values in (*measured, ("processor time a step", "ms", TIME_LIMIT, of_time, ms)):
        early, late = (median(some) for some in (values[later : later + 10], values[-10:]))
        holds = rise <= limit
        shown = ",.2f" if unit == "ms" else ",.0f"
        cells = " | ".join(f"{value:{shown}} {unit}".strip() for value in (early, late))
        per = "% a 1000 steps" if unit == "ms" else f"{unit} a step".strip()
        yield f"| {name} | {cells} | {rise:.4f} {per} | {limit:g} | {'holds' if holds else 'GROWS'} |", holds


def soak(name: str, do: Callable[[int], object], n_steps: int, n_mix: int) -> tuple[list[str], bool]:
    """Do the steps, print the samples of each tenth, and return the lines of the table and whether all limits hold."""
    samples: list[Sample] = []
    for sample in watch(do, n_steps, n_mix):
        if not samples or sample[0] // (n_steps / 10) > samples[-1][0] // (n_steps / 10):
            n, peak, own, *_, seconds = sample
            print(f"{name} {n:,}: {peak:,} bytes, {own / 2**20:.1f} MiB resident, {1000 * seconds:.1f} ms", flush=True)
        samples.append(sample)
    found = list(rows(samples))
    heading = f"## {samples[-1][0]:,} {name}s, {len(samples)} samples"
    table = ["| what | after a tenth | at the end | slope | limit | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    return ["", heading, "", *table, *(row for row, _ in found)], all(holds for _, holds in found)


def main() -> None:
    """Print the tables, and write them if nothing was shortened."""
    parser = argparse.ArgumentParser(description="Watch memory, descriptors and time of a long run.")
    parser.add_argument("--steps", type=int, default=N_STEPS, help="training steps, %(default)s by default")
    parser.add_argument("--reconstructions", type=int, default=N_RECONSTRUCTIONS, help="%(default)s by default")
    args = parser.parse_args()
    if not DESCRIPTORS.exists():
        print("benchmarks/soak.py is left out: this system has no /proc. benchmarks/results/soak.md stays.")
        return
    trained, steady = soak("training step", training(), args.steps, len(TRAININGS))
    imaged, as_steady = soak("reconstruction", reconstruction(), args.reconstructions, len(RECONSTRUCTIONS))
    lines = [
        "# What a long run leaves behind",
        "",
        f"`make soak`, {machine()}. Mixed small volumes, blocks, coils, engines and methods, in one process. Slopes "
        "are medians over all pairs of samples after the first tenth; values are medians of ten samples.",
        *trained,
        *imaged,
    ]
    print("\n".join(lines[2:]))
    if args.steps >= N_STEPS and args.reconstructions >= N_RECONSTRUCTIONS:
        (ROOT / "benchmarks" / "results" / "soak.md").write_text("\n".join(lines) + "\n")
    sys.exit(not (steady and as_steady))


if __name__ == "__main__":
    main()
