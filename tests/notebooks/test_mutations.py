"""The lessons notice a library that is wrong: each mutation below makes a notebook fail, which passes without it.

A mutation is a mistake that somebody could make: a sign, a scale, a halo, a seed. It is applied to a copy of the
library, and a notebook runs on the copy up to the first cell whose output is another than the stored one. All of
them take a quarter of an hour: ``make mutate``. That they still fit the code is tested in no time, always.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = re.compile(r"\b(?:SyntaxError|IndentationError|NameError|ImportError|ModuleNotFoundError|Kernel dead)\b")


class Mutation(NamedTuple):
    """What goes wrong, where, the text and what takes its place, and the notebook that is to notice."""

    name: str
    file: str
    old: str
    new: str
    notebook: str


MUTATIONS = (
    Mutation(
        "the sign of the Fourier exponent is plus",
        "physics/fourier.py", "turn = -2 * torch.pi * r", "turn = 2 * torch.pi * r", "01_nufft",
    ),
    Mutation(
        "the image's center is one voxel further",
        "physics/fourier.py", "device=k.device) - n // 2", "device=k.device) - (n - 1) // 2", "01_nufft",
    ),
    Mutation(
        "the NUFFT is scaled by the voxels and not by their root",
        "physics/fourier.py",
        "_scale(result, 1 / math.sqrt(math.prod(self.in_shape)))",
        "_scale(result, 1 / math.prod(self.in_shape))",
        "01_nufft",
    ),
    Mutation(
        "the adjoint does not conjugate the coil maps",
        "physics/sense.py",
        "x += (self._maps(coils, y).conj() * self.fourier.adjoint",
        "x += (self._maps(coils, y) * self.fourier.adjoint",
        "00_start_here",
    ),
    Mutation(
        "the density compensation forgets lags of the other sign",
        "physics/density.py", "lags[n - 1 : n], 2 * lags[n:]", "lags[n - 1 : n], lags[n:]", "00_start_here",
    ),
    Mutation(
        "the Toeplitz kernel is divided by the voxels of the padded grid",
        "physics/toeplitz.py",
        "math.prod(piece) ** 0.5 / math.prod(shape)",
        "math.prod(piece) ** 0.5 / math.prod(padded)",
        "00_start_here",
    ),
    Mutation(
        "the halo is one voxel narrower than the network's reach",
        "blockwise/questions.py",
        "return AxisReach(max(radius, depth), stride, halo, ",
        "return AxisReach(max(radius, depth), stride, max(halo - 1, 0), ",
        "03_blockwise",
    ),
    Mutation(
        "what is kept of a window ignores that the window was moved inward",
        "blockwise/blocks.py",
        "slice(start - first, stop - first)",
        "slice(min(start, halo), min(start, halo) + stop - start)",
        "03_blockwise",
    ),
    Mutation(
        "the weights' gradient is that of the last batch of blocks",
        "blockwise/blocks.py",
        "total if one is None else total + one",
        "total if one is None else one",
        "03_blockwise",
    ),
    Mutation(
        "what is computed in the halo counts in the gradient",
        "blockwise/blocks.py",
        "grad_output[i][:, *block.kept] = grad_y[:, *block.place]",
        "grad_output[i][:] = grad_y[:, *block.window]",
        "03_blockwise",
    ),
    Mutation(
        "memory that is given back still counts",
        "blockwise/memory.py",
        "self.add(base - self.sizes.pop(key), self.part_of.pop(key))",
        "self.sizes.pop(key), self.part_of.pop(key)",
        "02_memory_blowup",
    ),
    Mutation(
        "a plan forgets the bytes of the model's weights",
        "mbdl/footprint.py",
        'peak.bytes += n_weights + parts["scratch"]',
        'peak.bytes += parts["scratch"]',
        "02_memory_blowup",
    ),
    Mutation(
        "the step of data consistency goes uphill",
        "mbdl/data_consistency.py",
        "torch.view_as_real(g.mul_(-step_size).add_(x))",
        "torch.view_as_real(g.mul_(step_size).add_(x))",
        "00_start_here",
    ),
    Mutation(
        "the data are weighted by the density, and not by its root",
        "mbdl/data_consistency.py",
        "(A.dcf.to(unit.dtype).sqrt() / unit)",
        "(A.dcf.to(unit.dtype) / unit)",
        "00_start_here",
    ),
    Mutation(
        "the image comes back in the network's unit",
        "mbdl/unrolled.py", "return last * data.scale", "return last", "00_start_here",
    ),
    Mutation(
        "the soft threshold is twice as high",
        "classic/sparsity.py", "(magnitude - threshold).clamp_", "(magnitude - 2 * threshold).clamp_", "00_start_here",
    ),
    Mutation(
        "a seed of the phantom is another person",
        "data/phantom.py", "SeedSequence([seed, 0x7409A])", "SeedSequence([seed + 1, 0x7409A])", "03_blockwise",
    ),
    Mutation(
        "the noise is drawn from another seed",
        "data/simulate.py", '"seed", 0), 0x015E]', '"seed", 0), 0x015F]', "04_training",
    ),
    Mutation(
        "the noise has its power shared between real and imaginary part",
        "data/simulate.py",
        "float(kspace.abs().square().mean().sqrt()) * 2**0.5",
        "float(kspace.abs().square().mean().sqrt())",
        "04_training",
    ),
    Mutation(
        "PSNR takes amplitudes for powers",
        "metrics.py", "float(20 * np.log10(r.max() / rms))", "float(10 * np.log10(r.max() / rms))", "00_start_here",
    ),
    Mutation(
        "SSIM takes twice the reference's range",
        "metrics.py", "data_range=r.max(),", "data_range=2 * r.max(),", "00_start_here",
    ),
    Mutation(
        "a raw file's trajectory is read as kz ky kx",
        "data/ismrmrd.py", 'columns: str = "kx ky kz",', 'columns: str = "kz ky kx",', "06_your_data",
    ),
    Mutation(
        "the noise scan is used the wrong way round",
        "physics/channels.py", "(vectors * values.rsqrt())", "(vectors * values.sqrt())", "06_your_data",
    ),
    Mutation(
        "the maps are normalized by their real parts alone",
        "physics/calibration.py",
        "energy += coil.real.square() + coil.imag.square()",
        "energy += coil.real.square()",
        "06_your_data",
    ),
    Mutation(
        "BART's maps are read as (coil, x, y, z)",
        "data/cfl.py",
        "np.ascontiguousarray(maps.reshape(maps.shape[N_DIMS - 1 - COIL :]))",
        "np.ascontiguousarray(maps.reshape(maps.shape[N_DIMS - 1 - COIL :]).transpose(0, 3, 2, 1))",
        "06_your_data",
    ),
    Mutation(
        "a NIfTI file is written as (z, y, x)",
        "data/formats.py", ".numpy().transpose(2, 1, 0)", ".numpy().transpose(0, 1, 2)", "06_your_data",
    ),
)  # fmt: skip


def copy_library(folder: Path) -> Path:
    """Put a copy of the library, and the way to its samples, into a folder."""
    shutil.copytree(ROOT / "blockkit", folder / "blockkit")
    (folder / "blockkit_samples").symlink_to(ROOT / "data_samples", target_is_directory=True)
    return folder


def mutated(text: str, mutation: Mutation) -> str:
    """Return the text of a file with a mutation in it."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} has {text.count(mutation.old)} times, expected once: {mutation.old}")
    return text.replace(mutation.old, mutation.new)


def first_failure(notebook: str, library: Path) -> tuple[str, str] | None:
    """Run a notebook with another library up to the first cell that fails: its name and what it says."""
    report = library / "report.xml"
    command = [sys.executable, "-m", "pytest", "--nbval", "-x", "--nbval-cell-timeout", "300", "-q", "--color=no"]
    command += ["-p", "no:cacheprovider", "--junitxml", str(report), f"notebooks/{notebook}.ipynb"]
    environment = os.environ | {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    for case in ElementTree.parse(report).iter("testcase"):
        for failure in case.findall("failure"):
            return str(case.get("name")), failure.text or ""
    assert run.returncode == 0, run.stdout + run.stderr
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_fits_the_code(mutation: Mutation) -> None:
    path = ROOT / "blockkit" / mutation.file
    compile(mutated(path.read_text(encoding="utf-8"), mutation), path, "exec")
    assert (ROOT / "notebooks" / f"{mutation.notebook}.ipynb").is_file()


def test_a_mutation_that_does_not_fit_is_refused() -> None:
    mutation = Mutation("", "a.py", "x + 1", "x", "")
    for text in ("x - 1", "x + 1; x + 1"):
        with pytest.raises(ValueError, match=r"a\.py has [02] times, expected once: x \+ 1"):
            mutated(text, mutation)


@pytest.mark.mutation
@pytest.mark.parametrize("notebook", sorted({mutation.notebook for mutation in MUTATIONS}))
def test_the_notebook_passes_without_a_mutation(notebook: str, tmp_path: Path) -> None:
    assert first_failure(notebook, copy_library(tmp_path)) is None


@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_notebook_notices_the_mutation(mutation: Mutation, tmp_path: Path) -> None:
    path = copy_library(tmp_path) / "blockkit" / mutation.file
    path.write_text(mutated(path.read_text(encoding="utf-8"), mutation), encoding="utf-8")
    failed = first_failure(mutation.notebook, tmp_path)
    assert failed is not None, f"{mutation.notebook} passes although {mutation.name}"
    cell, said = failed
    assert not BROKEN.search(said), f"the mutation breaks the code in place of its result:\n{said}"
    print(f"{mutation.name}: {mutation.notebook}, {cell}")
