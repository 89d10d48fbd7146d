"""Where k-space is sampled, and how densely: 3D radial spokes and density compensation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_shape3
from blockkit.physics.fourier import NUFFT

GOLDEN_MEANS = (0.465571231876768, 0.682327803828019)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def radial_3d(n_spokes: int, n_readout: int, image_shape: Sequence[int]) -> Tensor:
    r"""Return diametrical spokes through the center of k-space, spread evenly by the 3D golden means.

    Spoke m points along :math:`u_z = \{m \varphi_1\}` (a half sphere suffices: a spoke has two ends) at the azimuth
    :math:`2\pi \{m \varphi_2\}`, with :math:`\varphi_1 = 0.4656, \varphi_2 = 0.6823` and braces for the fractional
    part, so any number of spokes in a row covers k-space evenly. Sample j lies at
    :math:`k_a = n_a u_a (j - \lfloor R/2 \rfloor)/R` for R samples: the spokes fill an ellipsoid that reaches n/2 on
    each axis, which is a sphere in 1/mm if the voxels are cubes. Where one axis is one voxel thick, k is 0 along it
    and the angles advance by the 2D golden angle of 111.25 degrees.

    Parameters
    ----------
    n_spokes, n_readout
        How many spokes, and samples on each. Twice the largest axis samples the readout without aliasing in a
        doubled FOV.
    image_shape
        ``(z, y, x)``.

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_spokes * n_readout, 3)``, spoke after spoke, columns kz ky kx, cycles/FOV. The
        sample at k = 0 is number ``n_readout // 2`` of each spoke.

    References
    ----------
    .. [1] Chan, Ramsay, Cunningham and Plewes, "Temporal stability of adaptive 3D radial MRI using multidimensional
       golden means", MRM 61:354-363, 2009.
    .. [2] Winkelmann, Schaeffter, Koehler, Eggers and Doessel, "An optimal radial profile order based on the golden
       ratio for time-resolved MRI", IEEE Trans. Med. Imaging 26:68-76, 2007.
    """
    shape = check_shape3(image_shape)
    check_count(n_spokes, "n_spokes")
    check_count(n_readout, "n_readout")
    sizes = torch.tensor([n if n > 1 else 0 for n in shape], dtype=torch.float64)
    radius = (torch.arange(n_readout, dtype=torch.float64) - n_readout // 2) / n_readout
    spokes = radius[None, :, None] * (_directions(n_spokes, shape) * sizes)[:, None, :]
    return spokes.reshape(-1, 3).float()


def _directions(n_spokes: int, shape: Shape3) -> Tensor:
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
    r"""Weigh each sample by the volume of k-space that it stands for, by Pipe's iteration.

    .. math:: w \leftarrow w / (\Psi w), \qquad \Psi = F \,\mathrm{diag}(h)\, F^H

    :math:`\Psi` sums neighbors with a k-space kernel, the transform of the window h. Here h is the autocorrelation of
    a Gaussian half the FOV wide, so the kernel is a square and never negative, about 2 cycles/FOV wide and
    round. Full Cartesian sampling gives w = 1 each; 3D radial gives the :math:`k^2` law between 1 cycle/FOV and where
    neighboring spokes are further apart than the kernel: from there on the weights level off.

    Parameters
    ----------
    trajectory
        Sample positions, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in -n/2..n/2.
    image_shape
        ``(z, y, x)``.
    n_iterations
        How often to divide; ten bring :math:`\Psi w` to 1 within about 2 % (root mean square).

    Returns
    -------
    Tensor
        Positive, float32, shape ``(sample,)``, in (cycles/FOV)^3: the volume that each sample stands for.

    References
    ----------
    .. [1] Pipe and Menon, "Sampling density compensation in MRI: rationale and an iterative numerical solution",
       MRM 41:179-186, 1999.
    """
    shape = check_shape3(image_shape)
    check_count(n_iterations, "n_iterations")
    F = NUFFT(trajectory, shape)
    window = _autocorrelated_window(shape).to(trajectory.device)
    own_share = float(window.mean())
    weights = torch.ones(F.out_shape, device=trajectory.device)
    for _ in range(n_iterations):
        density = F.forward(window * F.adjoint(weights.to(torch.complex64))).real
        weights = weights / torch.maximum(density, own_share * weights)
    return weights


def _autocorrelated_window(shape: Shape3) -> Tensor:
    """Return a window (z, y, x), 1 at the center, whose transform is a square: the autocorrelation of a Gaussian."""
    window = torch.ones((), dtype=torch.float64)
    for n in shape:
        half = (n + 1) // 2
        bell = torch.exp(-8 * ((torch.arange(half, dtype=torch.float64) - (half - 1) / 2) / half) ** 2)
        lags = torch.nn.functional.conv1d(bell[None, None], bell[None, None], padding=half - 1)[0, 0]
        along = torch.zeros(n, dtype=torch.float64)
        along[n // 2 - half + 1 : n // 2 + half] = lags / lags.max()
        window = window[..., None] * along
    return window.float()
