"""Where k-space is sampled, and how densely: 3D radial spokes and density compensation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import check_count, check_shape3
from blockkit.physics.fourier import NUFFT

GOLDEN_MEANS = (0.465571231876768, 0.682327803828019)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def radial_3d(n_spokes: int, n_readout: int, image_shape: Sequence[int]) -> Tensor:
    shape = check_shape3(image_shape)
    check_count(n_spokes, "n_spokes")
    check_count(n_readout, "n_readout")
    sizes = torch.tensor([n if n > 1 else 0 for n in shape], dtype=torch.float64)
    radius = (torch.arange(n_readout, dtype=torch.float64) - n_readout // 2) / n_readout
    spokes = radius[None, :, None] * (_directions(n_spokes, shape) * sizes)[:, None, :]
    return spokes.reshape(-1, 3).float()


def _directions(n_spokes: int, shape: tuple[int, int, int]) -> Tensor:
    m = torch.arange(n_spokes, dtype=torch.float64)
    directions = torch.zeros(n_spokes, 3, dtype=torch.float64)
    thick = [axis for axis in range(3) if shape[axis] > 1]
    if len(thick) == 3:
        height = (m * GOLDEN_MEANS[0]) % 1
        angle = 2 * math.pi * ((m * GOLDEN_MEANS[1]) % 1)
        across = (1 - height**2).sqrt()
        return torch.stack([height, across * angle.sin(), across * angle.cos()], dim=1)
    if len(thick) == 2:
        angle = math.pi * ((m * GOLDEN_RATIO) % 1)
        directions[:, thick[0]], directions[:, thick[1]] = angle.sin(), angle.cos()
    elif len(thick) == 1:
        directions[:, thick[0]] = 1
    return directions


def density_compensation(trajectory: Tensor, image_shape: Sequence[int], *, n_iterations: int = 10) -> Tensor:
    shape = check_shape3(image_shape)
    F = NUFFT(trajectory, shape, tolerance=1e-3)
    window = torch.ones((), dtype=torch.float32, device=trajectory.device)
    for n in shape:
        distance = (torch.arange(n, device=trajectory.device) - n // 2).abs() / ((n + 1) // 2)
        window = window[..., None] * (1 - distance).clamp(min=0)
    weights = torch.ones(F.out_shape, dtype=torch.float32, device=trajectory.device)
    for _ in range(n_iterations):
        density = F.forward(window * F.adjoint(weights.to(torch.complex64))).real
        weights = weights / density.clamp(min=1e-3)
    return weights
