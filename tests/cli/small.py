"""Small scans, weights and folders for the tests of the commands."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockkit.data.raw import RawScan
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import save_weights

SHAPE = (10, 12, 8)


def make_scan(seed: int = 1, n_coils: int = 3) -> Scan:
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, 2 * n) for n in SHAPE), indexing="ij")
    volume = ((z / 0.7) ** 2 + (y / 0.6) ** 2 + (x / 0.8) ** 2 < 1).to(torch.complex64) * (1 + 0.5j)
    return simulate_scan(volume, SHAPE, n_coils=n_coils, n_spokes=60, noise=0.01, seed=seed)


def make_raw(scan: Scan) -> RawScan:
    """The scan as a file would have it that knows neither maps nor reference."""
    noise = torch.randn(scan.n_coils, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return RawScan(scan.kspace, scan.trajectory, scan.image_shape, scan.voxel_size, noise=noise, n_readout=24)


def make_folder(place: Path, scan: Scan, names: tuple[str, ...] = ("ann_1", "bob_1", "cid_1")) -> Path:
    place.mkdir()
    for number, name in enumerate(names, 1):
        replace(scan, kspace=number * scan.kspace).save(place / f"{name}.h5")
    return place


def make_weights(path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(UnrolledNetwork(ResidualCNN(4, 2), 2), path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The message on stderr of a command that failed."""
    captured = capsys.readouterr()
    assert captured.err.startswith("blockkit: ")
    assert "Traceback" not in captured.err
    return captured.err


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
