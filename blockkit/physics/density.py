"""How densely k-space is sampled: the volume that each sample stands for."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_shape3
from blockkit.physics.fourier import NUFFT


def density_compensation(trajectory: Tensor, image_shape: Sequence[int], *, n_iterations: int = 8) -> Tensor:
    r"""Weigh each sample by the volume of k-space that it stands for, by Pipe's iteration.

    .. math:: w \leftarrow w / (\Psi w), \qquad \Psi = F \,\mathrm{diag}(h)\, F^H

    :math:`\Psi` adds up neighboring samples with a kernel in k-space, the transform of a window h over twice the FOV,
    which is where :math:`F^H \mathrm{diag}(w) F` has its lags. Here h is the autocorrelation of a Gaussian cut at the
    FOV, so the kernel is a square, never negative, and about 1 cycle/FOV wide. Full Cartesian sampling gives w = 1
    each. 3D radial gives the :math:`k^2` law on average, out to where neighboring spokes are further apart than the
    kernel is wide: from there on the weights level off.

    Parameters
    ----------
    trajectory
        Sample positions, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in -n/2..n/2.
    image_shape
        ``(z, y, x)``.
    n_iterations
        How often to divide. Past ten the weights follow each crossing of spokes, and gridding gains nothing.

    Returns
    -------
    Tensor
        Positive, float32, shape ``(sample,)``, in (cycles/FOV)^3: the volume that each sample stands for.

    References
    ----------
    .. [1] Pipe and Menon, "Sampling density compensation in MRI: rationale and an iterative numerical solution",
       MRM 41:179-186, 1999.

    Examples
    --------
    >>> w = bk.density_compensation(scan.trajectory, scan.image_shape).reshape(80, 32)  # (spoke, readout)
    >>> bool(w[:, 0].mean() > 10 * w[:, 16].mean())
    True
    """
    shape = check_shape3(image_shape)
    check_count(n_iterations, "n_iterations")
    checked = NUFFT(trajectory, shape, tolerance=1e-3)
    k, wide = checked.trajectory, check_shape3((shape[0], *(2 * n if n > 1 else 1 for n in shape[1:])))
    F = checked.resized(wide)
    # The weights are real, so lags of one sign along z suffice: 0..n-1, which the phase brings to the center.
    turns = k[:, 0] * (shape[0] // 2 / shape[0])
    phase = torch.polar(torch.ones_like(turns), 2 * math.pi * turns).to(torch.complex64)
    window = _half_window(shape).to(k.device) * (math.prod(wide) / math.prod(shape))
    own_share = float(window.mean())
    weights = torch.ones(F.out_shape, device=k.device)
    for _ in range(n_iterations):
        density = (phase.conj() * F.forward(window * F.adjoint(phase * weights))).real
        weights = weights / torch.maximum(density, own_share * weights)
    return weights


def _half_window(shape: Shape3) -> Tensor:
    """Return the window on lags 0..n-1 along z, doubled from 1 on for the other sign, and on -n..n-1 along y, x."""
    window = torch.ones((), dtype=torch.float64)
    for axis, n in enumerate(shape):
        bell = torch.exp(-4 * ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n) ** 2)
        lags = torch.nn.functional.conv1d(bell[None, None], bell[None, None], padding=n - 1)[0, 0]
        lags = lags / lags.max()
        if axis == 0:
            along = torch.cat([lags[n - 1 : n], 2 * lags[n:]])
        else:
            along = torch.nn.functional.pad(lags, (1, 0)) if n > 1 else lags
        window = window[..., None] * along
    return window.float()
