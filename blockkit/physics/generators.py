"""Trajectories from the generators of mri-nufft, brought to this library's unit, order and shape."""

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from blockkit.checks import check_count, check_number, check_shape3

_HALF = 0.5 * 1.001  # cycles per voxel, with room for rounding


def from_mrinufft(trajectory: ArrayLike | Tensor, image_shape: Sequence[int]) -> Tensor:
    """Bring a trajectory of mri-nufft's generators to this library's convention.

    There k is in cycles per voxel, -0.5..0.5 on each axis, columns kx ky kz, and each shot has a row of its own.

    Parameters
    ----------
    trajectory
        What an ``initialize_3D_...`` or ``initialize_2D_...`` returned: real, shape ``(shot, sample, 3)``,
        ``(shot, sample, 2)``, or without the axis of the shots.
    image_shape
        ``(z, y, x)``; ``(1, y, x)`` for a trajectory of two columns.

    Returns
    -------
    Tensor
        Real, float32, shape ``(shot * sample, 3)``, shot after shot, columns kz ky kx, cycles/FOV.

    Raises
    ------
    ValueError
        If the shape does not fit, a value is not finite, or k leaves -0.5..0.5.

    Examples
    --------
    >>> shots = torch.linspace(-0.5, 0.5, 32)[:, None] * torch.eye(3)[:, None]  # cycles/voxel, columns kx ky kz
    >>> bk.from_mrinufft(shots, (16, 12, 16)).shape
    torch.Size([96, 3])
    """
    shape = check_shape3(image_shape)
    k = torch.as_tensor(trajectory).detach().cpu().double()
    if k.ndim not in (2, 3) or k.shape[-1] not in (2, 3) or not k.numel():
        raise ValueError(f"trajectory has shape {tuple(k.shape)}, expected (shot, sample, 3), or (shot, sample, 2).")
    if k.shape[-1] == 2 and shape[0] > 1:
        raise ValueError(
            f"trajectory has two columns, kx and ky, and image_shape is {shape}: expected (1, y, x). Write "
            f"(1, {shape[1]}, {shape[2]}), or take a generator whose name begins with initialize_3D."
        )
    largest = float(k.abs().max())
    if not largest <= _HALF:  # also if it is NaN
        hint = " Radians per voxel? Pass trajectory / (2 * math.pi)." if largest <= math.pi * 1.001 else ""
        raise ValueError(f"trajectory reaches {largest:g}, expected cycles per voxel, -0.5..0.5.{hint}")
    k = k.clamp(-0.5, 0.5).reshape(-1, k.shape[-1]).flip(1)
    if k.shape[1] == 2:
        k = torch.nn.functional.pad(k, (1, 0))
    return (k * torch.tensor(shape)).float()


def floret(
    n_interleaves: int, n_readout: int, image_shape: Sequence[int], *, n_turns: float = 1.0, n_hubs: int = 3
) -> Tensor:
    r"""Return FLORET: Fermat spirals from the center outwards, folded onto cones around one axis or all three.

    Along a Fermat spiral the distance from the center grows with the root of the angle, so it passes through shells of
    equal area in equal times. Cones around one axis crowd at its poles; three hubs of cones within 45 degrees of their
    equators do not. The ellipsoid of :func:`~blockkit.physics.trajectory.radial_3d` is filled. Made by mri-nufft, an
    optional package.

    Parameters
    ----------
    n_interleaves, n_readout
        How many interleaves in all, a multiple of ``n_hubs``, and samples on each, from the center to the edge.
    image_shape
        ``(z, y, x)``, each of at least 2.
    n_turns
        Turns of an interleaf on the equator from the center to the edge.
    n_hubs
        3 (the paper's, one around each axis) or 1 (around z, up to the poles).

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_interleaves * n_readout, 3)``, interleaf after interleaf, columns kz ky kx,
        cycles/FOV. The first sample of each interleaf is at k = 0.

    Raises
    ------
    ImportError
        If mri-nufft is not installed.
    ValueError
        If a number is out of range, or an axis is one voxel thick.

    References
    ----------
    .. [1] Pipe et al., "A new design and rationale for 3D orthogonally oversampled k-space trajectories",
       MRM 66:1303-1311, 2011, doi:10.1002/mrm.22918.

    Examples
    --------
    >>> bk.floret(30, 64, (16, 12, 16)).shape
    torch.Size([1920, 3])
    """
    shape = check_shape3(image_shape)
    if min(shape) == 1:
        raise ValueError(f"image_shape is {shape}, and FLORET fills a volume. For one slice, use cones: its spirals.")
    if n_hubs not in (1, 3):
        raise ValueError(f"n_hubs is {n_hubs}, expected 1 or 3.")
    if check_count(n_interleaves, "n_interleaves") % n_hubs:
        more = n_interleaves + -n_interleaves % n_hubs
        raise ValueError(f"n_interleaves is {n_interleaves}, expected a multiple of n_hubs = {n_hubs}, such as {more}.")
    if not 0 < check_number(n_turns, "n_turns") < math.inf:
        raise ValueError(f"n_turns is {n_turns}, expected a number above 0, such as 1.")
    check_count(n_readout, "n_readout", 2)
    shots = _generators().initialize_3D_floret(
        n_interleaves,
        n_readout,
        nb_revolutions=n_turns,
        max_angle=math.pi / (2 if n_hubs == 1 else 4),
        axes=(0, 1, 2) if n_hubs == 3 else (2,),
    )
    return from_mrinufft(shots, shape)


def _generators() -> Any:
    """Import mri-nufft's generators on first use, keeping to itself what the import warns of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the NUFFT libraries that it looks for
            return importlib.import_module("mrinufft.trajectories")
    except ImportError as error:
        raise ImportError("floret needs mri-nufft, which cannot be imported: pip install mri-nufft") from error
