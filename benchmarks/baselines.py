"""Public compressed sensing behind one door: blockkit's own, BART's and SigPy's, on the same data and the same maps.

Each baseline has a key for files, a name, the weight and the iterations from which its tuning starts,
``timed(scan, weight, n_iterations)``, and ``missing()``, which says why it cannot run here, or nothing.

BART [1] runs as a command, on cfl files. Its ``-S`` undoes its scaling of the data, and its NUFFT has the scale of
blockkit's to 0.2 %, so its images are compared as they are. SigPy [2] runs in an environment of its own,
build/peers/sigpy; its NUFFT has the same orthonormal scale.

[1] Uecker et al., "Berkeley advanced reconstruction toolbox", https://mrirecon.github.io/bart.
[2] Ong and Lustig, "SigPy", https://github.com/mikgroup/sigpy.
"""

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from common import ROOT, environment

import blockkit as bk

SIGPY = ("sigpy==0.1.27", "numba", "pywavelets")
HAAR = "-e --wavelet haar -R W:7:0:{weight:g}"


class Baseline(Protocol):
    """What the benchmark asks of a baseline."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def n_iterations(self) -> int: ...

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""

    def timed(self, scan: bk.Scan, weight: float, n_iterations: int) -> tuple[torch.Tensor, float]:
        """Return the image, complex64 (z, y, x), in the scale of the scan's reference, and seconds with set-up."""


@dataclass(frozen=True)
class Own:
    """Blockkit's compressed sensing. The weight is a fraction of the one that gives a zero image."""

    key: str
    name: str
    wavelet: str
    weight: float
    n_iterations: int = 200

    def missing(self) -> str | None:
        return None

    def timed(self, scan: bk.Scan, weight: float, n_iterations: int) -> tuple[torch.Tensor, float]:
        began = time.perf_counter()
        A = bk.Encoding(scan.trajectory, scan.maps)
        options = {"wavelet": self.wavelet, "n_iterations": n_iterations, "tolerance": 0}
        image = bk.compressed_sensing(A, scan.kspace, reg_weight=weight, **options)
        return image, time.perf_counter() - began


@dataclass(frozen=True)
class Bart:
    """BART's ``pics``; ``{weight}`` stands for the weight in ``options``, on data in BART's own scaling.

    With TV it runs ADMM, and counts the conjugate gradient steps within: 4 and 8 iterations give the same image.
    ``weighted``: each sample counts by the square root of its density compensation.
    """

    key: str
    name: str
    options: str
    weight: float
    n_iterations: int = 100
    weighted: bool = False

    def missing(self) -> str | None:
        return None if shutil.which("bart") else "bart is not on the PATH (Debian and Ubuntu: apt install bart)"

    def timed(self, scan: bk.Scan, weight: float, n_iterations: int) -> tuple[torch.Tensor, float]:
        options = self.options.format(weight=weight).split()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_cfl(folder / "trajectory", scan.trajectory.flip(1).T.numpy()[:, None])
            write_cfl(folder / "kspace", scan.kspace.T.numpy()[None, None])
            write_cfl(folder / "maps", scan.maps.numpy().T)
            files = ["-t", "trajectory", "kspace", "maps", "image"]
            began = time.perf_counter()
            if self.weighted:
                write_cfl(folder / "pattern", sample_weights(scan).sqrt().numpy()[None, None])
                files = ["-p", "pattern", *files]
            run(["bart", "pics", "-S", "-i", str(n_iterations), *options, *files], folder)
            seconds = time.perf_counter() - began
            image = read_cfl(folder / "image").reshape(scan.image_shape[::-1])
        return torch.from_numpy(np.ascontiguousarray(image.T)), seconds


@dataclass(frozen=True)
class SigPy:
    """An app of SigPy's ``mri.app``; the weight is a fraction of the largest magnitude of the adjoint of the data.

    ``weighted``: each sample counts by the square root of its density compensation.
    """

    key: str
    name: str
    app: str
    weight: float
    n_iterations: int = 100
    weighted: bool = False

    def missing(self) -> str | None:
        try:
            environment("sigpy", SIGPY)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return None

    def timed(self, scan: bk.Scan, weight: float, n_iterations: int) -> tuple[torch.Tensor, float]:
        script = ROOT / "benchmarks" / "sigpy_recon.py"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            arrays = {part: getattr(scan, part).numpy() for part in ("kspace", "maps", "trajectory")}
            began = time.perf_counter()
            if self.weighted:
                arrays["weights"] = sample_weights(scan).numpy()
            seconds = time.perf_counter() - began
            np.savez(folder / "input.npz", **arrays)
            python = environment("sigpy", SIGPY)
            options = [self.app, repr(weight), str(n_iterations)]
            said = run([python, str(script), "input.npz", "output.npy", *options], folder)
            return torch.from_numpy(np.load(folder / "output.npy")), seconds + float(said)


BASELINES: tuple[Baseline, ...] = (
    Own("own", "blockkit L1-wavelet (db4)", "db4", 4e-5),
    Own("own_haar", "blockkit L1-wavelet (Haar)", "haar", 2.5e-6),
    Bart("bart_haar", "BART L1-wavelet (Haar)", HAAR, 3e-4),
    Bart("bart_haar_weighted", "BART L1-wavelet (Haar, weighted samples)", HAAR, 5e-3, 50, weighted=True),
    Bart("bart_wavelet", "BART L1-wavelet (dau2)", "-e -R W:7:0:{weight:g}", 3e-4),
    Bart("bart_tv", "BART TV (weighted samples)", "-R T:7:0:{weight:g}", 4e-3, weighted=True),
    Bart("bart_tikhonov", "BART Tikhonov", "-l2 -r {weight:g}", 1e-3, 25),
    SigPy("sigpy_wavelet", "SigPy L1WaveletRecon", "L1WaveletRecon", 2e-4),
    SigPy("sigpy_tv", "SigPy TotalVariationRecon (weighted samples)", "TotalVariationRecon", 2e-4, weighted=True),
)


def sample_weights(scan: bk.Scan) -> torch.Tensor:
    """Return the square root of the density compensation, the largest 1.

    Radial samples that all count the same make total variation by ADMM or by a primal-dual method converge slowly: on
    the validation phantoms of quality.py BART needs 3200 iterations (32.4 dB), and with these weights 100 (32.3 dB).
    With wavelets BART then needs 50 iterations instead of 200, for 0.5 dB less there.
    """
    dcf = bk.density_compensation(scan.trajectory, scan.image_shape)
    return (dcf / dcf.max()).sqrt()


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder, on as many threads as torch uses here; return or, if it failed, raise what it said."""
    n_threads = str(torch.get_num_threads())
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), n_threads)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **threads})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def write_cfl(path: Path, array: np.ndarray) -> None:
    """Write ``path.hdr`` and ``path.cfl``: the sizes, then complex64 with the first axis running fastest."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> np.ndarray:
    """Read what :func:`write_cfl` or BART wrote."""
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")
