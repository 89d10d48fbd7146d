"""How the shipped model fares where settings differ from the base, against tuned compressed sensing.

Base: 48 x 40 x 48, 4 coils, acceleration 8, noise 2 %, 3D radial. One thing at a time differs: matrix, coils,
acceleration, noise, trajectory; one setting is fully sampled and free of noise. In each setting the weight of
compressed sensing (Haar) is tuned on a scan of its own, with the reference in hand, at 200 iterations, by steps of a
factor of two until both neighbors are worse; the test scans, seeds 3020 and 3021, are reconstructed with it at 400. At
128 and 192 voxels 400 iterations chose the same weight as 200. The larger matrices are run with ``--large`` alone.
Vessels: the part of the centerlines visible in the reference that is visible in the image, for diameters of about 1/2,
1 and 2 voxels, and the part of the image's vessels that the reference does not have. All images are kept in
build/robustness/, so that a run that was stopped goes on. Writes benchmarks/results/robustness.md after each setting.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from common import ROOT, command, machine, weights_name

import blockkit as bk
from blockkit.data.centerlines import vessel_centerlines
from blockkit.data.visibility import DIAMETERS, invented_vessels, vessel_scores

KEPT = ROOT / "build" / "robustness"
TEST_SEEDS, VALIDATION_SEED = (3020, 3021), 3019
WAVELET, BASE_WEIGHT = "haar", 2.5e-6  # the best of blockkit's own at the base: benchmarks/quality.py
TUNING_ITERATIONS, N_ITERATIONS = 200, 400
MAKE: dict[str, Callable[[int, int, Sequence[int]], torch.Tensor]] = {
    "radial": bk.radial_3d,
    "cones": bk.cones,
    "stack of stars": bk.stack_of_stars,
}


@dataclass(frozen=True)
class Setting:
    """What a scan is like."""

    name: str
    image_shape: tuple[int, int, int] = (48, 40, 48)
    n_coils: int = 4
    acceleration: float = 8
    noise: float = 0.02
    trajectory: str = "radial"

    @property
    def folder(self) -> Path:
        """Where its images are kept."""
        size = "x".join(map(str, self.image_shape))
        values = f"{self.n_coils}_coils_r{self.acceleration:g}_noise{self.noise:g}_{self.trajectory.replace(' ', '_')}"
        return KEPT / f"{size}_{values}"

    @property
    def n_readouts(self) -> int:
        """Spokes or interleaves: those that leave neighbors at the edge 1 cycle/FOV apart, over the acceleration."""
        z, y, x = self.image_shape
        full = z * max(y, x) if self.trajectory == "stack of stars" else max(z, y, x) ** 2
        return round(math.pi / 2 * full / self.acceleration)

    @property
    def first_weight(self) -> float:
        """Where the search of the weight begins: what is best at the base, in proportion to the noise in A^H y.

        The weight is a fraction of the one that gives a zero image, and larger volumes have larger coefficients.
        """
        larger = math.prod(self.image_shape) / math.prod(Setting("base").image_shape)
        guess = BASE_WEIGHT * max(self.noise, 5e-4) / 0.02 * (self.acceleration / 8) ** 0.5 / larger**0.8
        return float(BASE_WEIGHT * 2.0 ** round(math.log2(guess / BASE_WEIGHT)))


def settings(large: bool) -> list[Setting]:
    """Return all settings, the base first."""
    base = Setting("base")
    varied = [
        *(replace(base, name=f"noise {100 * value:g} %", noise=value) for value in (0.005, 0.01, 0.05, 0.1)),
        *(replace(base, name=f"acceleration {value}", acceleration=value) for value in (2, 4, 16, 20)),
        replace(base, name="cones", trajectory="cones"),
        replace(base, name="stack of stars", trajectory="stack of stars"),
        replace(base, name="fully sampled, no noise", acceleration=1, noise=0.0),
        *(replace(base, name=f"{value} coil{'s' if value > 1 else ''}", n_coils=value) for value in (1, 2, 8, 20)),
    ]
    shapes = [(64, 48, 56), *([(96, 72, 96), (128, 96, 112), (192, 144, 176)] if large else [])]
    return [base, *varied, *(replace(base, name=" x ".join(map(str, shape)), image_shape=shape) for shape in shapes)]


class Case:
    """A setting and a seed: its scan, made when asked for, and images of it, made once and kept."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed

    @cached_property
    def scan(self) -> bk.Scan:
        """The simulated scan."""
        setting, shape = self.setting, self.setting.image_shape
        volume = bk.pulmonary_phantom(tuple(round(1.5 * n) for n in shape), seed=self.seed)
        trajectory = MAKE[setting.trajectory](setting.n_readouts, 2 * max(shape), shape)
        return bk.simulate_scan(
            volume, shape, n_coils=setting.n_coils, noise=setting.noise, seed=self.seed, trajectory=trajectory
        )

    @cached_property
    def A(self) -> bk.Encoding:
        """Its encoding operator."""
        return bk.Encoding(self.scan.trajectory, self.scan.maps)

    def kept(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the image that is kept under a name, or make and keep it."""
        path = self.setting.folder / f"{self.seed}_{name}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(make().clone(), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return torch.load(path, weights_only=True)

    def reference(self) -> torch.Tensor:
        """Return the image to compare with."""
        return self.kept("reference", lambda: self.scan.reference)

    def gridding(self) -> torch.Tensor:
        """Return the gridding reconstruction."""
        return self.kept("gridding", lambda: self.A.adjoint(self.A.dcf * self.scan.kspace))

    @torch.no_grad()
    def mbdl(self) -> torch.Tensor:
        """Return the image of the shipped model."""
        return self.kept(f"mbdl_{weights_name()}", lambda: bk.pretrained()(self.A, self.scan.kspace))

    def compressed_sensing(self, weight: float, n_iterations: int) -> torch.Tensor:
        """Return the image of compressed sensing."""
        options = {"wavelet": WAVELET, "reg_weight": weight, "n_iterations": n_iterations}
        return self.kept(
            f"cs_{WAVELET}_{weight:g}_{n_iterations}",
            lambda: bk.compressed_sensing(self.A, self.scan.kspace, **options),
        )


def tuned_weight(setting: Setting) -> float:
    """Climb from the first weight, by factors of two, to one whose neighbors are both worse on the validation scan."""
    case, scores = Case(setting, VALIDATION_SEED), dict[float, float]()

    def score(weight: float) -> float:
        if weight not in scores:
            scores[weight] = bk.psnr(case.compressed_sensing(weight, TUNING_ITERATIONS), case.reference())
            print(f"  {setting.name}: weight {weight:g} gives {scores[weight]:.2f} dB", flush=True)
        return scores[weight]

    best = setting.first_weight
    while True:
        above = max((best, 2 * best, best / 2), key=score)
        if above == best:
            return best
        best = above


def measures(image: torch.Tensor, case: Case) -> list[float]:
    """Return PSNR in dB, SSIM, three visible parts, and the invented part."""
    reference = case.reference()
    lines = vessel_centerlines(case.setting.image_shape, seed=case.seed)
    visible = [score.visible for score in vessel_scores(image, reference, lines, diameters=DIAMETERS[:3])]
    return [
        bk.psnr(image, reference),
        bk.ssim(image, reference),
        *visible,
        invented_vessels(image, reference, lines),
    ]


def compare(setting: Setting) -> tuple[str, float]:
    """Return a line of the table, means over the test scans, and the smallest difference in dB."""
    weight = tuned_weight(setting)
    found = []
    for seed in TEST_SEEDS:
        case = Case(setting, seed)
        images = (case.gridding(), case.compressed_sensing(weight, N_ITERATIONS), case.mbdl())
        found.append([measures(image, case) for image in images])
    values = torch.tensor(found)  # (seed, method, measure)
    gains = values[:, 2, 0] - values[:, 1, 0]
    gridding, cs, mbdl = values.nanmean(dim=0).tolist()
    cells = [setting.name, f"{weight:.2g}", f"{gridding[0]:.2f}", f"{cs[0]:.2f}", f"{mbdl[0]:.2f}"]
    cells += [f"{float(gains.mean()):+.2f}", f"{float(gains.min()):+.2f}", f"{cs[1]:.3f}", f"{mbdl[1]:.3f}"]
    for i in range(2, 6):
        cells += [f"{100 * cs[i]:.0f}", f"{100 * mbdl[i]:.0f}"]
    return f"| {' | '.join(cells)} |", float(gains.min())


def write(rows: dict[str, tuple[str, float]]) -> None:
    """Write the table of the settings done so far."""
    worst = min(rows, key=lambda name: rows[name][1])
    lines = [
        "# MBDL against compressed sensing where settings differ",
        "",
        f"`{command()}`, {machine()}; weights {weights_name()}, "
        f"seeds {', '.join(map(str, TEST_SEEDS))}. Vessels in percent.",
        "",
        "| setting | CS weight | gridding dB | CS dB | MBDL dB | MBDL - CS dB | smallest | CS SSIM | MBDL SSIM "
        "| 1/2 voxel CS | MBDL | 1 voxel CS | MBDL | 2 voxels CS | MBDL | invented CS | MBDL |",
        "|" + " --- |" * 17,
        *(line for line, _ in rows.values()),
        "",
        f"Smallest difference: {rows[worst][1]:+.2f} dB ({worst}).",
    ]
    (ROOT / "benchmarks" / "results" / "robustness.md").write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table as it comes, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help="larger matrices too: hours")
    args = parser.parse_args(argv)
    rows: dict[str, tuple[str, float]] = {}
    for setting in settings(args.large):
        rows[setting.name] = compare(setting)
        print(rows[setting.name][0], flush=True)
        write(rows)


if __name__ == "__main__":
    main()
