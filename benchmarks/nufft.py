"""The NUFFT beside bare finufft and torchkbnufft, a thousand calls in a row, and which normal is faster.

Prints three tables as they come and writes them to benchmarks/results/nufft.md. Takes about five minutes.
"""

import math
import time
from collections.abc import Callable
from statistics import median

import finufft
import torch
from common import ROOT, machine, seconds

import blockkit as bk
from blockkit.blockwise.resident import resident
from blockkit.physics.engines import oversampling
from blockkit.physics.fourier import toeplitz_pays
from blockkit.physics.toeplitz import Toeplitz, padded_shape

SHAPE, N_SPOKES = (96, 96, 96), 4000  # 768,000 samples
TOLERANCE = 1e-3  # torchkbnufft's own error, at its defaults
SIZES = ((32, 32, 32), (48, 40, 48), (64, 64, 64), (96, 80, 96), (128, 128, 128), (192, 128, 192))
SHARES = (0.002, 0.01, 0.05)  # samples over points of the padded grid
N_CALLS = 1000


def beside_others() -> list[str]:
    """Time one coil: ours, plans made with finufft alone, and torchkbnufft, both ways."""
    k = bk.radial_3d(N_SPOKES, 2 * SHAPE[0], SHAPE)
    x, y = torch.randn(SHAPE, dtype=torch.complex64), torch.randn(len(k), dtype=torch.complex64)
    ours, slow = bk.NUFFT(k, SHAPE, tolerance=TOLERANCE), bk.NUFFT(k, SHAPE, engine="torchkbnufft", tolerance=TOLERANCE)
    columns = [(column * (2 * math.pi / n)).numpy().copy() for column, n in zip(k.T, SHAPE, strict=True)]
    settings = {"eps": TOLERANCE / 6, "upsampfac": 1.25, "dtype": "complex64", "nthreads": torch.get_num_threads()}
    bare = {kind: finufft.Plan(kind, SHAPE, isign=isign, **settings) for kind, isign in ((2, -1), (1, 1))}
    for plan in bare.values():
        plan.setpts(*columns)
    out = {2: y.numpy().copy(), 1: x.numpy().copy()}
    lines = [f"## {SHAPE}, {len(k):,} samples, one coil, tolerance {TOLERANCE:g}, seconds", ""]
    lines += ["| | bare finufft | blockkit | ratio | torchkbnufft | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    runs: dict[str, tuple[Callable[[], object], ...]] = {
        "forward": (lambda: bare[2].execute(x.numpy(), out=out[2]), lambda: ours(x), lambda: slow(x)),
        "adjoint": (lambda: bare[1].execute(y.numpy(), out=out[1]), lambda: ours.adjoint(y), lambda: slow.adjoint(y)),
    }
    for name, (of_finufft, of_ours, of_torch) in runs.items():
        pairs = [
            (seconds(of_finufft, 1), seconds(of_ours, 1)) for _ in range(25)
        ]  # in turn: both meet the same machine
        typical = [median(times) for times in zip(*pairs, strict=True)]
        other = seconds(of_torch, 1)
        lines.append(
            f"| {name} | {typical[0]:.3f} | {typical[1]:.3f} | {typical[1] / typical[0]:.2f} | {other:.2f} | "
            f"{other / typical[1]:.0f} |"
        )
    return lines


def repeated() -> list[str]:
    """Call forward and adjoint a thousand times."""
    shape = (48, 48, 48)
    F = bk.NUFFT(bk.radial_3d(400, 96, shape), shape)
    x = torch.randn(shape, dtype=torch.complex64)
    lines = [f"## {N_CALLS} times forward and adjoint, {shape}", ""]
    lines += ["| calls | seconds | resident MiB |", "| --- | --- | --- |"]
    F.adjoint(F(x))
    for tenth in range(10):
        start = time.perf_counter()
        for _ in range(N_CALLS // 10):
            F.adjoint(F(x))
        took = time.perf_counter() - start
        if tenth in (0, 4, 9):
            calls = f"{tenth * N_CALLS // 10 + 1} to {(tenth + 1) * N_CALLS // 10}"
            lines.append(f"| {calls} | {took:.2f} | {resident() / 2**20:.0f} |")
    return lines


def normals() -> list[str]:
    """Time the pair of NUFFTs over Toeplitz, and what the rule picks."""
    lines = ["## The pair of NUFFTs over Toeplitz, in time; one coil", ""]
    lines += ["| image | tolerance | fine grid | samples / padded grid | pair / Toeplitz | the rule | right |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for shape in SIZES:
        x, n_padded = torch.randn(shape, dtype=torch.complex64), math.prod(padded_shape(shape))
        T = Toeplitz(torch.rand(padded_shape(shape)), shape)
        of_toeplitz = seconds(lambda T=T, x=x: T(x))
        for share in SHARES:
            k = bk.radial_3d(max(1, round(share * n_padded / (2 * shape[0]))), 2 * shape[0], shape)
            for tolerance in (1e-4, 1e-3):
                F = bk.NUFFT(k, shape, tolerance=tolerance)
                ratio = seconds(lambda F=F, x=x: F.adjoint(F(x))) / of_toeplitz
                pays = toeplitz_pays(shape, len(k), tolerance)
                right = "yes" if pays == (ratio > 1) else f"costs {max(ratio, 1 / ratio):.1f} x"
                grid = oversampling(torch.complex64, tolerance)
                cells = [" x ".join(map(str, shape)), f"{tolerance:g}", grid, f"{len(k) / n_padded:.3f}"]
                cells += [f"{ratio:.2f}", "Toeplitz" if pays else "NUFFT", right]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    """Print the tables as they come, and write them."""
    lines = [
        "# NUFFT and normal operator",
        "",
        f"`python benchmarks/nufft.py`, {machine()}, finufft {finufft.__version__}",
    ]
    for table in (beside_others, repeated, normals):
        lines += ["", *table()]
        print("\n".join(lines[-25:]) if table is normals else "\n".join(lines[-6:]), flush=True)
    (ROOT / "benchmarks" / "results" / "nufft.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
