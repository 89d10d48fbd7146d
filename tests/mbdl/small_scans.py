"""Scans that a training step takes milliseconds for."""

import torch

from blockkit.data.scan import Scan
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (8, 8, 8)


def make_scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> Scan:
    """A bright ball at a place drawn from the seed, seen by two coils, with noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    center = torch.rand(3, generator=generator) - 0.5
    image = torch.exp(-6 * sum((a - c) ** 2 for a, c in zip(axes, center, strict=True))).to(torch.complex64)
    trajectory, maps = radial_3d(25, 16, shape), simulate_maps(2, shape, seed=seed)
    kspace = Encoding(trajectory, maps)(image)
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return Scan(kspace + 0.05 * kspace.abs().square().mean().sqrt() * noise, trajectory, maps, (2.0, 2.0, 2.0), image)
