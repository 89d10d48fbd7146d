"""Write the small raw scans of data_samples/, one in each format, and their rows in data_samples/README.md.

Run it from anywhere: ``python tools/make_raw_samples.py``. The same constants give the same files on the same platform.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from make_sample import FOLDER, round_bits, write_row
from scipy.io import savemat

from blockkit.data.cfl import save_cfl
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.raw import RawScan
from blockkit.data.simulate import simulate_scan

IMAGE_SHAPE = (20, 16, 20)
N_COILS = 2
N_SPOKES = 60
NOISE = 0.02
N_NOISE = 256
SEED = 11
WHAT = f"simulated 3D radial scan, {N_SPOKES} spokes, noise {NOISE}, seed {SEED}"


def make_raw() -> RawScan:
    """Simulate the scan, with samples of its noise alone."""
    fine = tuple(3 * n // 2 for n in IMAGE_SHAPE)
    scan = simulate_scan(
        pulmonary_phantom(fine, seed=SEED), IMAGE_SHAPE, n_coils=N_COILS, n_spokes=N_SPOKES, noise=NOISE, seed=SEED
    )
    spread = NOISE * float(scan.kspace.abs().square().mean().sqrt()) * 2**0.5
    noise = spread * torch.randn(N_COILS, N_NOISE, dtype=torch.complex64, generator=torch.Generator().manual_seed(SEED))
    return RawScan(
        round_bits(scan.kspace),
        scan.trajectory,
        IMAGE_SHAPE,
        scan.voxel_size,
        noise=round_bits(noise),
        n_readout=2 * max(IMAGE_SHAPE),
        maps=round_bits(scan.maps),
    )


def write_npz(path: Path, raw: RawScan) -> None:
    """Write k-space (spoke, readout, coil) and a trajectory kx ky kz in cycles per voxel."""
    n = raw.n_readout or 1
    np.savez_compressed(
        path,
        ksp=raw.kspace.reshape(N_COILS, -1, n).permute(1, 2, 0).numpy(),
        coord=(raw.trajectory / torch.tensor(IMAGE_SHAPE)).flip(1).reshape(-1, n, 3).numpy(),
    )


def write_mat(path: Path, raw: RawScan) -> None:
    """Write k-space (readout, spoke, coil) and a trajectory kx ky kz in radians per voxel, without the date."""
    n = raw.n_readout or 1
    radians = raw.trajectory / torch.tensor(IMAGE_SHAPE) * (2 * torch.pi)
    arrays = {
        "data": raw.kspace.reshape(N_COILS, -1, n).permute(2, 1, 0).numpy(),
        "k": radians.flip(1).reshape(-1, n, 3).permute(1, 0, 2).numpy(),
    }
    savemat(path, arrays, do_compression=True)
    with path.open("r+b") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(116))


def describe(path: Path, shape: str, unit: str) -> str:
    """Return the row of README.md."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    cells = (path.name, WHAT, "`tools/make_raw_samples.py`", "BSD-3-Clause", shape, unit)
    return f"| {' | '.join((*cells, str(path.stat().st_size), digest))} |"


def write_all(folder: Path, raw: RawScan) -> dict[str, tuple[str, str]]:
    """Write every file; return its shape and unit by name."""
    spokes = f"{N_SPOKES} spokes x {raw.n_readout} samples, {N_COILS} coils"
    save_ismrmrd(folder / "raw_ismrmrd.h5", RawScan(*(getattr(raw, f) for f in RawScan.__match_args__[:6])))
    save_cfl(folder / "raw_bart", raw)
    write_npz(folder / "raw_numpy.npz", raw)
    write_mat(folder / "raw_matlab.mat", raw)
    rows = {
        "raw_ismrmrd.h5": (f"{spokes}, {N_NOISE} samples of noise", "trajectory kx ky kz in cycles per field of view"),
        "raw_numpy.npz": (f"{spokes}: ksp (spoke, readout, coil), coord", "trajectory kx ky kz in cycles per voxel"),
        "raw_matlab.mat": (f"{spokes}: data (readout, spoke, coil), k", "trajectory kx ky kz in radians per voxel"),
    }
    units = {"kspace": "arbitrary", "trajectory": "cycles per field of view", "maps": "1", "noise": "arbitrary"}
    for name, unit in units.items():
        for end, content in (("hdr", "dimensions"), ("cfl", "complex64, fastest axis first")):
            rows[f"raw_bart_{name}.{end}"] = (content, unit)
    return rows


def main() -> None:
    """Write the samples and their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: data_samples)")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)  # so that sums have the same last bits in every run
    raw = make_raw()
    for name, (shape, unit) in write_all(folder, raw).items():
        write_row(folder / "README.md", name, describe(folder / name, shape, unit))
    print(f"{raw}: {sum(path.stat().st_size for path in folder.glob('raw_*')) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
