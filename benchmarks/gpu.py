"""The same step on a CUDA device: bytes predicted and allocated, naive against block-wise, cufinufft against Toeplitz.

Writes benchmarks/results/gpu.md; without a device it says so, and leaves the file as it is.
"""

import time
from collections.abc import Callable, Iterator

import torch
from common import ROOT, machine

import blockkit as bk
from blockkit.mbdl.footprint import Case, predict_run, run_from_nothing

CASES = (((128, 128, 128), 2), ((192, 128, 192), 4), ((300, 200, 300), 6))
BLOCK, N_COILS, N_SAMPLES = (64, 64, 64), 8, 1_000_000


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of the second run, the device's work included."""
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
    return time.perf_counter() - start


def steps() -> Iterator[str]:
    """Compare the predicted peak of a step with what the allocator gave out, and time it."""
    yield "| image | unrolls | way | predicted GiB | allocated GiB | seconds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for (shape, n_unrolls), block in ((case, block) for case in CASES for block in (None, BLOCK)):
        with torch.device("cuda"):
            model = bk.UnrolledNetwork(bk.ResidualCNN(32, 5), n_unrolls, block_shape=block)
            case = Case(shape, N_COILS, N_SAMPLES, normal="toeplitz")
            predicted, free = predict_run(model, case).bytes, torch.cuda.mem_get_info()[0]
            cells = ["x".join(map(str, shape)), n_unrolls, block or "naive", f"{predicted / 2**30:.2f}"]
            if predicted > free:
                cells += ["does not fit", "-"]
            else:
                torch.cuda.reset_peak_memory_stats()
                seconds = timed(lambda model=model, case=case: run_from_nothing(model, case))
                cells += [f"{torch.cuda.max_memory_allocated() / 2**30:.2f}", f"{seconds:.2f}"]
        yield f"| {' | '.join(map(str, cells))} |"


def normals() -> Iterator[str]:
    """Time the normal operator of one coil."""
    yield "| image | engine | pair of NUFFTs, s | Toeplitz, s | ratio |"
    yield "| --- | --- | --- | --- | --- |"
    for shape, _ in CASES:
        F = bk.NUFFT(bk.radial_3d(4000, 250, shape).cuda(), shape)
        T, x = F.toeplitz(), torch.randn(shape, dtype=torch.complex64, device="cuda")
        pair, one = timed(lambda F=F, x=x: F.adjoint(F(x))), timed(lambda T=T, x=x: T(x))
        yield f"| {'x'.join(map(str, shape))} | {F.engine} | {pair:.4f} | {one:.4f} | {pair / one:.1f} |"


def main() -> None:
    """Print the tables and write them, or say that there is no device."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py is left out: this machine has no CUDA device. benchmarks/results/gpu.md stays.")
        return
    lines = ["# On a GPU", "", f"`python benchmarks/gpu.py`, {machine()}", ""]
    lines += [torch.cuda.get_device_name(), "", *steps(), "", *normals()]
    print("\n".join(lines[2:]))
    (ROOT / "benchmarks" / "results" / "gpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
