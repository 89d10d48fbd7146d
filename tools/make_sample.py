"""Write data_samples/phantom_scan.h5, the scan of the lessons, and its row in data_samples/README.md.

Run it from anywhere: ``python tools/make_sample.py``. The same constants give the same file on the same platform.
"""

import argparse
import dataclasses
import hashlib
import math
from pathlib import Path

import torch

from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan

IMAGE_SHAPE = (56, 42, 56)
FINER = 1.5
N_COILS = 6
ACCELERATION = 8
NOISE = 0.02
SEED = 7
SIGNIFICANT_BITS = 16  # of the 24 of a float32: the last 8 hold nothing that the noise does not bury

FOLDER = Path(__file__).parent.parent / "data_samples"
NAME = "phantom_scan.h5"
HEADER = """# Sample data

Made by `tools/make_sample.py`, `tools/make_raw_samples.py` and `tools/train_shipped.py`; nobody was scanned for it.

| file | what | source | licence | shape | unit | bytes | sha256 |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def make_sample() -> Scan:
    """Simulate the sample: a 3D radial scan, ACCELERATION times fewer spokes than pi/2 n^2."""
    fine_shape = tuple(round(FINER * n) for n in IMAGE_SHAPE)
    n_spokes = round(math.pi / 2 * max(IMAGE_SHAPE) ** 2 / ACCELERATION)
    volume = pulmonary_phantom(fine_shape, seed=SEED)
    scan = simulate_scan(volume, IMAGE_SHAPE, n_coils=N_COILS, n_spokes=n_spokes, noise=NOISE, seed=SEED)
    rounded = {name: round_bits(getattr(scan, name)) for name in ("kspace", "maps", "reference")}
    return dataclasses.replace(scan, **rounded)


def round_bits(values: torch.Tensor) -> torch.Tensor:
    """Round real and imaginary parts to SIGNIFICANT_BITS, so that they compress."""
    mantissa, exponent = torch.frexp(torch.view_as_real(values))
    mantissa = torch.round(mantissa * 2**SIGNIFICANT_BITS) / 2**SIGNIFICANT_BITS
    return torch.view_as_complex(torch.ldexp(mantissa, exponent))


def describe(scan: Scan, path: Path) -> str:
    """Return the row of README.md."""
    cells = (
        NAME,
        f"simulated 3D radial scan, acceleration {ACCELERATION}, noise {NOISE}, seed {SEED}",
        "`tools/make_sample.py`",
        "BSD-3-Clause",
        f"k-space {tuple(scan.kspace.shape)}, maps {tuple(scan.maps.shape)}, reference {scan.image_shape}",
        "arbitrary; trajectory in cycles per field of view; voxel size in mm",
        str(path.stat().st_size),
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    return f"| {' | '.join(cells)} |"


def write_row(readme: Path, name: str, row: str) -> None:
    """Put the row into the table, in place of an older one of the same file."""
    lines = (readme.read_text(encoding="utf-8") if readme.exists() else HEADER).splitlines()
    same = [i for i, line in enumerate(lines) if line.startswith(f"| {name} ")]
    after_table = max(i for i, line in enumerate(lines) if line.startswith("|")) + 1
    at = same[0] if same else after_table
    lines[at : at + len(same)] = [row]
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write the sample and its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: data_samples)")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)  # so that sums have the same last bits in every run
    scan = make_sample()
    scan.save(folder / NAME)
    write_row(folder / "README.md", NAME, describe(scan, folder / NAME))
    print(f"{scan}: {(folder / NAME).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
