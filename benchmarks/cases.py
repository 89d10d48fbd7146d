"""The scans on which reconstructions are compared, and the part of an image that counts.

A case is a name and a way to make its scan: for more cases, make more of them. A scan is made once and kept in
build/quality/NAME/, beside the images that were reconstructed from it. Delete that folder after a change to the
phantom, to the simulation or to a reconstruction.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import ROOT
from scipy import ndimage

import blockkit as bk
from blockkit.data.centerlines import Centerlines, vessel_centerlines

KEPT = ROOT / "build" / "quality"
IMAGE_SHAPE, FINE_SHAPE, N_COILS, NOISE = (48, 40, 48), (72, 60, 72), 4, 0.02
BODY_LEVEL = 0.05


@dataclass(frozen=True)
class Case:
    """A scan by name; ``make`` simulates or reads it, and ``centerlines`` are those of its vessels."""

    name: str
    make: Callable[[], bk.Scan]
    centerlines: Callable[[], Centerlines]

    @property
    def folder(self) -> Path:
        """Where the scan and its images are kept."""
        return KEPT / self.name

    def scan(self) -> bk.Scan:
        """Return the scan: the kept one, or a new one that is then kept."""
        path = self.folder / "scan.h5"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.make().save(path)
        return bk.load_scan(path)

    def image(self, key: str, reconstruct: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the image kept by this key, or reconstruct it and keep it; a file appears once it is whole."""
        path = self.folder / f"{key}.pt"
        if not path.exists():
            beside = path.with_suffix(".part")
            torch.save(reconstruct(), beside)
            beside.replace(path)
        return torch.load(path, weights_only=True)


def make_phantom_scan(seed: int, acceleration: float) -> bk.Scan:
    """Simulate a scan of a phantom; acceleration 1 has pi/2 times the square of the longest axis spokes."""
    volume = bk.pulmonary_phantom(FINE_SHAPE, seed=seed)
    n_spokes = round(np.pi / 2 * max(IMAGE_SHAPE) ** 2 / acceleration)
    return bk.simulate_scan(volume, IMAGE_SHAPE, n_coils=N_COILS, n_spokes=n_spokes, noise=NOISE, seed=seed)


def phantom_cases(seeds: range, acceleration: int) -> list[Case]:
    """Return a case for each seed."""
    make = functools.partial(make_phantom_scan, acceleration=acceleration)
    return [
        Case(
            f"phantom_{seed}_acceleration_{acceleration}",
            functools.partial(make, seed),
            functools.partial(vessel_centerlines, IMAGE_SHAPE, seed=seed),
        )
        for seed in seeds
    ]


def body_mask(reference: torch.Tensor) -> torch.Tensor:
    """Return where the body is, lungs included: what is bright, closed, and filled in each axial slice."""
    magnitude = reference.abs().numpy()
    bright = ndimage.binary_closing(np.pad(magnitude > BODY_LEVEL * magnitude.max(), 2), iterations=2)[2:-2, 2:-2, 2:-2]
    return torch.from_numpy(np.stack([ndimage.binary_fill_holes(axial) for axial in bright]))
