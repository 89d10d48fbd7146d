"""One training step at the paper's size on this machine: bytes predicted and resident, and where the time goes.

Eight coils, ResidualCNN(32, 5), 20,000 spokes of 450 samples: forward, backward, optimizer. Six unrolls by
default; two in the lean cases, to end within the hour: with ``offload="disk"`` more take no more memory. Each case runs
in a process of its own, on k-space of a phantom that another process simulated; its anonymous resident memory is
sampled, less what it was after the imports. Results wait in build/paper_size/, so a run that was stopped goes on; the
table is written to benchmarks/results/paper_size.md. Takes hours::

    python benchmarks/paper_size.py              every case that has no result yet
    python benchmarks/paper_size.py small large  these
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from common import ROOT, machine
from torch import nn

import blockkit as bk
from blockkit.blockwise.memory import Peak
from blockkit.blockwise.resident import resident, resident_growth
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.footprint import MAP_SPACING, Case, predict_run
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.optimizer import KernelOptimizer

KEPT = ROOT / "build" / "paper_size"
SMALL, LARGE = (300, 200, 300), (450, 300, 450)
N_COILS, N_UNROLLS, N_SPOKES, N_READOUT = 8, 6, 20_000, 450


@dataclass(frozen=True)
class Setting:
    """What a case is: sizes, and the options that spend or save memory. finufft at tolerance 1e-3: upsampfac 1.25."""

    image_shape: tuple[int, int, int]
    block_shape: tuple[int, int, int]
    lean: bool = False
    normal: str = "nufft"
    tolerance: float = 1e-3
    n_unrolls: int = N_UNROLLS
    limit_gib: float = 0

    def model(self) -> bk.UnrolledNetwork:
        """Return the untrained network."""
        offload = "disk" if self.lean else None
        torch.manual_seed(0)
        return bk.UnrolledNetwork(bk.ResidualCNN(32, 5), self.n_unrolls, block_shape=self.block_shape, offload=offload)

    def predicted(self, block_shape: tuple[int, int, int] | None) -> int:
        """Return the predicted bytes of a step, with these blocks or naive."""
        model = self.model()
        model.block_shape, model.offload = block_shape, model.offload if block_shape else None
        n_samples, lean = N_SPOKES * N_READOUT, self.lean
        case = Case(self.image_shape, N_COILS, n_samples, True, lean, tolerance=self.tolerance, normal=self.normal)
        return predict_run(model, case).bytes


SETTINGS = {
    "small": Setting(SMALL, (75, 50, 75), limit_gib=6),
    "small lean": Setting(SMALL, (75, 67, 75), lean=True, n_unrolls=2, limit_gib=4),
    "small lean, Toeplitz": Setting(SMALL, (75, 67, 75), lean=True, normal="toeplitz", n_unrolls=1, limit_gib=4),
    "large lean": Setting(LARGE, (113, 100, 113), lean=True, n_unrolls=2, limit_gib=12),
}


class ComplexCNN(nn.Module):
    """Five complex 3x3x3 convolutions of 16, 32, 32, 32 and 16 channels: the kind of network that laboratories use."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 32, 32, 16)) -> None:
        super().__init__()
        convolution = partial(nn.Conv3d, dtype=torch.complex64)
        self.hidden = nn.ModuleList(convolution(n, m, 3, padding=1) for n, m in pairwise((1, *widths)))
        self.last = convolution(widths[-1], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the regularized volume."""
        z = torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None]
        for convolution in self.hidden:
            z = convolution(z)
            z = torch.complex(z.real.relu(), z.imag.relu())
        return x + torch.view_as_real(self.last(z)[:, 0]).movedim(-1, 1)


def complex_network() -> Iterator[str]:
    """Give the table of what a step with :class:`ComplexCNN` would take."""
    yield "## Predicted only: five complex convolutions of 16, 32, 32, 32, 16 channels, 6 unrolls"
    yield ""
    yield "| image | naive GiB | block | default GiB | lean GiB |"
    yield "| --- | --- | --- | --- | --- |"
    for shape, block in ((SMALL, (75, 50, 75)), (LARGE, (75, 75, 75))):
        found = []
        for sides, lean in ((None, False), (block, False), (block, True)):
            offload = "disk" if lean else None
            model = bk.UnrolledNetwork(ComplexCNN(), N_UNROLLS, block_shape=sides, offload=offload)
            case = Case(shape, N_COILS, N_SPOKES * N_READOUT, True, lean)
            found.append(f"{predict_run(model, case).bytes / 2**30:.1f}")
        sizes = [" x ".join(map(str, sides)) for sides in (shape, block)]
        yield f"| {' | '.join([sizes[0], found[0], sizes[1], *found[1:]])} |"


def scan_file(image_shape: tuple[int, int, int]) -> Path:
    """Return where the simulated k-space of a size waits."""
    return KEPT / f"scan_{'x'.join(map(str, image_shape))}.pt"


def make_scan(image_shape: tuple[int, int, int]) -> None:
    """Simulate k-space, on the image's own grid: what is measured here does not depend on what it shows."""
    small = bk.simulate_maps(N_COILS, [-(-n // MAP_SPACING) for n in image_shape])
    volume = bk.pulmonary_phantom(image_shape, seed=0)
    trajectory = bk.radial_3d(N_SPOKES, N_READOUT, image_shape)
    A = bk.Encoding(trajectory, bk.InterpolatedMaps(small, image_shape), tolerance=1e-3)
    found = {"kspace": A.forward(volume), "maps": small, "dcf": A.dcf, "reference": volume}
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(found, scan_file(image_shape).with_suffix(".part"))
    scan_file(image_shape).with_suffix(".part").rename(scan_file(image_shape))


def step(setting: Setting) -> dict[str, float]:
    """Run one training step and return its times and peaks."""
    seconds: dict[str, float] = {}
    after_imports, preparing, stepping = resident(), Peak(), Peak()
    with resident_growth(preparing):
        start = time.perf_counter()
        scan = torch.load(scan_file(setting.image_shape), weights_only=True)
        maps: object = bk.InterpolatedMaps(scan["maps"], setting.image_shape)
        if not setting.lean:
            maps = maps.full()  # type: ignore[attr-defined]
        trajectory = bk.radial_3d(N_SPOKES, N_READOUT, setting.image_shape)
        how = {"normal": setting.normal, "tolerance": setting.tolerance, "weights": scan["dcf"]}
        A = bk.Encoding(trajectory, maps, **how)
        with torch.no_grad():
            data = prepare(A, scan["kspace"] * scan["dcf"].sqrt())
        seconds["preparation"] = time.perf_counter() - start
    counted = data.normal

    def normal(x: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        y = counted(x)
        seconds["A^H A"] = seconds.get("A^H A", 0) + time.perf_counter() - start
        return y

    object.__setattr__(data, "normal", normal)
    model = setting.model()
    optimizer = KernelOptimizer(model.parameters(), 1e-3, lambda _: 1.0)
    kept = resident() - after_imports
    with resident_growth(stepping):
        start = time.perf_counter()
        loss, error = training_loss(model, data, scan["reference"])
        seconds["forward"] = time.perf_counter() - start
        loss.backward()
        seconds["forward and backward"] = time.perf_counter() - start
        optimizer.step()
        seconds["step"] = time.perf_counter() - start
    found = {name: round(value, 1) for name, value in seconds.items()}
    return {
        **found,
        "error": float(error),
        "peak": kept + stepping.resident_bytes,
        "peak of preparation": preparing.resident_bytes,
    }


def row(name: str, setting: Setting, found: dict[str, float]) -> str:
    """Return a line of the table."""
    gib = 2**30
    naive, blocks = setting.predicted(None) / gib, setting.predicted(setting.block_shape) / gib
    sizes = [" x ".join(map(str, shape)) for shape in (setting.image_shape, setting.block_shape)]
    network = found["step"] - found["A^H A"]
    cells = [name, *sizes, setting.n_unrolls, f"{naive:.0f}", f"{blocks:.2f}", f"{found['peak'] / gib:.2f}"]
    cells += [f"{found['peak'] / gib / blocks - 1:+.1%}", setting.limit_gib, f"{naive / (found['peak'] / gib):.0f}"]
    times = (found["step"], network, found["A^H A"], found["preparation"])
    cells += ["-" if value is None else f"{value / 60:.1f}" for value in times]
    cells += [f"{found['peak of preparation'] / gib:.2f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main(names: list[str]) -> None:
    """Run the cases that have no result, each in its own process, and write the table of all that have one."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in names or SETTINGS:
        kept = KEPT / f"{name}.json"
        if kept.exists():
            continue
        for what in ("--make", "--step"):
            if what == "--make" and scan_file(SETTINGS[name].image_shape).exists():
                continue
            print(f"{time.strftime('%H:%M')} {name} {what}", flush=True)
            subprocess.run([sys.executable, __file__, what, name], check=True)
        print(f"{time.strftime('%H:%M')} {name}: {kept.read_text()}", flush=True)
    lines = [
        "# A training step at the paper's size",
        "",
        f"`python benchmarks/paper_size.py`, {machine()}; {N_COILS} coils, {N_SPOKES:,} spokes x {N_READOUT} samples, "
        "ResidualCNN(32, 5). GiB = 2^30 bytes. Resident: anonymous memory of the process, less that after the imports. "
        'Lean: `offload="disk"` and interpolated maps. A^H A by finufft at upsampfac 1.25, unless it says Toeplitz. '
        "A dash: the run was halted for a while in between, so its time says nothing.",
        "",
        "| case | image | block | unrolls | naive, predicted GiB | predicted GiB | resident GiB | difference | "
        "limit GiB | naive / resident | step, min | network, disk | A^H A | preparation | its GiB |",
        "|" + " --- |" * 15,
    ]
    done = [name for name in SETTINGS if (KEPT / f"{name}.json").exists()]
    lines += [row(name, SETTINGS[name], json.loads((KEPT / f"{name}.json").read_text())) for name in done]
    large = replace(SETTINGS["large lean"], n_unrolls=N_UNROLLS)
    predicted = [large.predicted(block) / 2**30 for block in (large.block_shape, None)]
    lines += [
        "",
        f"The large case with {N_UNROLLS} unrolls, predicted: {predicted[0]:.2f} GiB; naive {predicted[1]:.0f}.",
    ]
    lines += ["", *complex_network()]
    print("\n".join(lines[4:]))
    (ROOT / "benchmarks" / "results" / "paper_size.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_scan(SETTINGS[sys.argv[2]].image_shape)
    elif sys.argv[1:2] == ["--step"]:
        kept = KEPT / f"{sys.argv[2]}.json"
        kept.write_text(json.dumps(step(SETTINGS[sys.argv[2]])))
    else:
        main(sys.argv[1:])
