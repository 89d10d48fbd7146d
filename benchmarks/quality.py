"""Image quality of the shipped model against public compressed sensing, tuned and converged, on unseen phantoms.

Phantoms of 48 x 40 x 48, 4 coils, noise 2 %, acceleration 4, 8 and 16. Each baseline gets its weight and its iterations
on two validation phantoms for each acceleration (tuning.py); then the twelve test phantoms are reconstructed with them.
A baseline more than 1.5 dB below the best on the validation phantoms is not run on the test phantoms, and if that is
so at acceleration 8, not tuned for the others either; one that is not installed is skipped. The table says so. Nothing
is tuned on a test phantom, and no image is rescaled.

``python benchmarks/quality.py``, or one stage of it: ``tune``, ``test`` or ``table``, which writes
benchmarks/results/quality.md. Images are kept in build/quality/, so a run that was stopped goes on, and two cores serve
well: run ``tune --baselines`` for some of them in one shell and for the others in another, then the whole.
"""

import argparse
import functools
import math
from typing import NamedTuple

import torch
from baselines import BASELINES, Baseline
from cases import Case, body_mask, phantom_cases
from common import ROOT, command, machine, weights_name
from tuning import PLATEAU_DB, climb, tune

import blockkit as bk
from blockkit.data.visibility import DIAMETERS, invented_vessels, vessel_scores

ACCELERATIONS = (8, 4, 16)  # in the order of tuning: each starts from what the one before it found
VALIDATION_SEEDS, TEST_SEEDS = range(2990, 2992), range(3000, 3012)
MOST_ITERATIONS, BEHIND_DB = 3200, 1.5


METRICS = ("PSNR dB", "SSIM", "PSNR dB, body", "SSIM, body", "NRMSE")  # a column each
VESSELS = {"1/2 voxel": DIAMETERS[0], "1 voxel": DIAMETERS[1], "2 voxels": DIAMETERS[2]}
VESSEL_METRICS = (*(f"visible, {name}" for name in VESSELS), "CNR, 1 voxel", "CNR, 2 voxels", "not invented")
LOWER_IS_BETTER = ("NRMSE",)
Scores = dict[str, list[dict[str, float]]]


class Tuned(NamedTuple):
    """What the validation phantoms gave a baseline."""

    baseline: Baseline
    weight: float
    n_iterations: int
    converged: bool
    psnr: float


def baseline_image(case: Case, baseline: Baseline, weight: float, n_iterations: int) -> torch.Tensor:
    """Return a baseline's image, the kept one if there is one."""
    key = f"{baseline.key}_{weight:.4g}_{n_iterations}"
    return case.image(key, lambda: baseline.timed(case.scan(), weight, n_iterations)[0])


def mean_psnr(cases: list[Case], baseline: Baseline, weight: float, n_iterations: int) -> float:
    """Return the mean PSNR on the cases; a reconstruction that diverged scores minus infinity."""
    scores = []
    for case in cases:
        image = baseline_image(case, baseline, weight, n_iterations)
        finite = bool(torch.isfinite(torch.view_as_real(image)).all())
        scores.append(bk.psnr(image, case.scan().reference) if finite else -math.inf)
    score = sum(scores) / len(scores)
    print(f"{cases[0].name}: {baseline.name}, weight {weight:.3g}, {n_iterations}: {score:.2f} dB", flush=True)
    return score


@functools.cache
def tuned(baseline: Baseline, acceleration: int) -> Tuned:
    """Tune a baseline for one acceleration; the first one starts with a coarse search on one phantom."""
    cases = phantom_cases(VALIDATION_SEEDS, acceleration)
    score = functools.cache(functools.partial(mean_psnr, cases, baseline))
    before = ACCELERATIONS.index(acceleration) - 1
    if before >= 0:
        _, weight, n_iterations, _, _ = tuned(baseline, ACCELERATIONS[before])
    else:
        one = functools.cache(functools.partial(mean_psnr, cases[:1], baseline))
        n_iterations = baseline.n_iterations
        weight = climb(lambda weight: one(weight, n_iterations), baseline.weight, 4)
    weight, n_iterations, converged = tune(score, weight, n_iterations, MOST_ITERATIONS)
    found = Tuned(baseline, weight, n_iterations, converged, score(weight, n_iterations))
    print(f"acceleration {acceleration}: {describe(found)}", flush=True)
    return found


def describe(found: Tuned) -> str:
    """Say what the tuning found."""
    how = f"weight {found.weight:.2g} and {found.n_iterations} iterations"
    end = "" if found.converged else ", not converged"
    return f"{found.baseline.name}: {found.psnr:.2f} dB with {how}{end}"


def contenders(every: list[Tuned]) -> list[Tuned]:
    """Return the baselines that are run on the test phantoms, the best first."""
    best = max(found.psnr for found in every)
    return sorted((one for one in every if one.psnr >= best - BEHIND_DB), key=lambda one: -one.psnr)


def mbdl_image(case: Case) -> torch.Tensor:
    """Return the shipped model's image; another weights file has another key."""

    @torch.no_grad()
    def reconstruct() -> torch.Tensor:
        scan = case.scan()
        return bk.pretrained()(bk.Encoding(scan.trajectory, scan.maps), scan.kspace)

    return case.image(f"mbdl_{weights_name()}", reconstruct)


def gridding_image(case: Case) -> torch.Tensor:
    """Return the gridding reconstruction."""
    scan = case.scan()
    A = bk.Encoding(scan.trajectory, scan.maps)
    return case.image("gridding", lambda: A.adjoint(A.dcf * scan.kspace))


def images(case: Case, runners: list[Tuned]) -> dict[str, torch.Tensor]:
    """Return every method's image of a case, by name."""
    compared = {one.baseline.name: baseline_image(case, one.baseline, one.weight, one.n_iterations) for one in runners}
    return {"gridding": gridding_image(case), **compared, "MBDL": mbdl_image(case)}


def measure(image: torch.Tensor, case: Case) -> dict[str, float]:
    """Return every metric of an image: of the whole volume, of the body, and of the vessels in the lungs.

    ``visible`` is the part of the centerlines visible in the reference that is visible in the image, by diameter;
    ``not invented`` is the part of the image's vessels that the reference has too.
    """
    reference = case.scan().reference
    body, lines = body_mask(reference), case.centerlines()
    vessels = dict(zip(VESSELS, vessel_scores(image, reference, lines, diameters=list(VESSELS.values())), strict=True))
    return {
        "PSNR dB": bk.psnr(image, reference),
        "SSIM": bk.ssim(image, reference),
        "PSNR dB, body": bk.psnr(image, reference, mask=body),
        "SSIM, body": bk.ssim(image, reference, mask=body),
        "NRMSE": bk.nrmse(image, reference),
        **{f"visible, {name}": score.visible for name, score in vessels.items()},
        **{f"CNR, {name}": score.cnr for name, score in vessels.items()},
        "not invented": 1 - invented_vessels(image, reference, lines),
    }


def evaluate(cases: list[Case], runners: list[Tuned]) -> Scores:
    """Return for each method, for each case, every metric."""
    scores: Scores = {}
    for case in cases:
        for name, image in images(case, runners).items():
            scores.setdefault(name, []).append(measure(image, case))
            print(f"{case.name}: {name} {scores[name][-1]['PSNR dB']:.2f} dB", flush=True)
    return scores


def section(title: str, cases: list[Case], runners: list[Tuned]) -> list[str]:
    """Return the lines of one set of cases."""
    scores = evaluate(cases, runners)
    lines = ["", f"## {title}", "", f"Mean, and smallest to largest, over {len(cases)} scans."]
    for columns in (METRICS, VESSEL_METRICS):
        lines += ["", f"| method | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        for name, rows in scores.items():
            lines.append(f"| {name} | " + " | ".join(spread([row[key] for row in rows], key) for key in columns) + " |")
    rivals = [scores[one.baseline.name] for one in runners]
    return [
        *lines,
        "",
        "MBDL minus the best baseline of each scan:",
        "",
        *(verdict(key, scores["MBDL"], rivals) for key in (*METRICS, *VESSEL_METRICS)),
    ]


def account(every: list[Tuned], untuned: list[Tuned]) -> list[str]:
    """Return the lines that say what the tuning found, and which baselines stopped there or before."""
    lines = ["", f"On the {len(VALIDATION_SEEDS)} validation phantoms:", ""]
    for found in sorted(every, key=lambda one: -one.psnr):
        lines.append(f"- {describe(found)}" + ("" if found in contenders(every) else ": not run on the test phantoms"))
    return lines + [
        f"- {one.baseline.name}: not tuned, too far behind at acceleration {ACCELERATIONS[0]}" for one in untuned
    ]


def spread(values: list[float], key: str) -> str:
    """Return mean, smallest and largest of those that are there: an image may have no vessel of a diameter."""
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return ""
    mean, low, high = (
        f"{v:.2f}" if "dB" in key else f"{v:.3f}" for v in (sum(there) / len(there), min(there), max(there))
    )
    return f"{mean} ({low} to {high})"


def verdict(key: str, ours: list[dict[str, float]], rivals: list[list[dict[str, float]]]) -> str:
    """Say by how much MBDL leads the best baseline of each scan."""
    sign = -1 if key in LOWER_IS_BETTER else 1
    leads = [
        sign * own[key] - max(sign * row[key] for row in rows)
        for own, *rows in zip(ours, *rivals, strict=True)
        if not math.isnan(own[key])
    ]
    if not leads:
        return f"- {key}: none in these phantoms."
    digits = 2 if "dB" in key else 3
    return (
        f"- {key}: mean lead {sum(leads) / len(leads):+.{digits}f}, "
        f"smallest {min(leads):+.{digits}f}; better in {sum(lead > 0 for lead in leads)} of {len(leads)}."
    )


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "stage", nargs="?", choices=("tune", "test", "table"), default="table", help="and what it needs"
    )
    parser.add_argument("--accelerations", type=int, nargs="+", choices=ACCELERATIONS, default=ACCELERATIONS)
    parser.add_argument(
        "--baselines",
        nargs="+",
        choices=[one.key for one in BASELINES],
        help="all by default; the table says which were left out",
    )
    parser.add_argument(
        "--only-at-8",
        nargs="+",
        default=[],
        choices=[one.key for one in BASELINES],
        help="run these at acceleration 8 alone, where an hour is to be saved; the table says so",
    )
    args = parser.parse_args()
    asked = {one: one.missing() for one in BASELINES if not args.baselines or one.key in args.baselines}
    skipped = [f"{one.name} was skipped: {why}." for one, why in asked.items() if why]
    skipped += [f"{one.name} was left out of this run." for one in BASELINES if one not in asked]
    skipped += [f"{one.name} was run at acceleration 8 alone." for one in asked if one.key in args.only_at_8]
    print("\n".join(skipped), flush=True)
    at_first = [tuned(one, ACCELERATIONS[0]) for one, why in asked.items() if not why]
    lines = ["# MBDL against tuned, converged compressed sensing on phantoms never trained on", ""]
    lines += [f"`{command()}`, {machine()}. Weights and iterations were tuned for PSNR on validation"]
    lines += [
        f"phantoms, iterations doubled until that gains less than {PLATEAU_DB} dB; no image is rescaled.",
        *skipped,
    ]
    for r in args.accelerations:
        here = [one for one in at_first if r == ACCELERATIONS[0] or one.baseline.key not in args.only_at_8]
        untuned = [one for one in here if one not in contenders(at_first) and r != ACCELERATIONS[0]]
        every = [tuned(one.baseline, r) for one in here if one not in untuned]
        cases = phantom_cases(TEST_SEEDS, r)
        if args.stage == "test":
            for one in contenders(every):
                mean_psnr(cases, one.baseline, one.weight, one.n_iterations)
        if args.stage == "table":
            lines += section(f"Acceleration {r}", cases, contenders(every)) + account(every, untuned)
    if args.stage == "table":
        print("\n".join(lines))
        (ROOT / "benchmarks" / "results" / "quality.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
