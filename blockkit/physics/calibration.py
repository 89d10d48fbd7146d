"""Coil sensitivity maps estimated from the scan's own center of k-space."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_kspace, check_shape3
from blockkit.physics.density import density_compensation
from blockkit.physics.espirit import espirit, smooth, smooth_phase
from blockkit.physics.fourier import NUFFT
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.solvers import conjugate_gradient

METHODS = ("espirit", "lowres")

_MARGIN = 4  # cycles/FOV around the calibration region that are gridded with it: neighbors leak into it
_GRID_ITERATIONS = 15
_NODES = 2  # nodes per cycle/FOV of the calibration region
_TRUSTED = 0.3  # of the typical signal: with as much, half of a map is its own and half its neighbors'
_REACH = 2.0  # nodes


@overload
def estimate_maps(
    kspace: Tensor,
    trajectory: Tensor,
    image_shape: Sequence[int],
    *,
    method: str = "espirit",
    calibration_width: int = 24,
    interpolated: Literal[False] = False,
) -> Tensor: ...
@overload
def estimate_maps(
    kspace: Tensor,
    trajectory: Tensor,
    image_shape: Sequence[int],
    *,
    method: str = "espirit",
    calibration_width: int = 24,
    interpolated: Literal[True],
) -> InterpolatedMaps: ...
@torch.no_grad()
def estimate_maps(
    kspace: Tensor,
    trajectory: Tensor,
    image_shape: Sequence[int],
    *,
    method: str = "espirit",
    calibration_width: int = 24,
    interpolated: bool = False,
) -> Tensor | InterpolatedMaps:
    r"""Estimate coil sensitivity maps from the center of k-space, for any trajectory that samples it densely.

    The center is gridded by least squares. The maps are found on a coarse grid of twice ``calibration_width`` nodes an
    axis (or of the voxels, if they are fewer), whatever the size of the image, and interpolated from there.

    - ``"espirit"``: eigenvectors of the operator that the center's own correlations define (:mod:`.espirit`). The
      better one, and the slower one: it grows with the cube of the number of coils.
    - ``"lowres"``: each coil's low-resolution image over the root of the sum of squares of all. The maps hold the phase
      of the image, so the image comes out nearly real.

    Every voxel has maps: the less signal there is, the more they are the mean of those around, weighted by signal. What
    the data cannot tell is a choice: the root of the sum of squares is 1 in each voxel, and the phase that all coils
    share is smooth.

    Parameters
    ----------
    kspace
        Complex, shape ``(coil, sample)``, any unit. Prewhiten it first if the coils' noise differs.
    trajectory
        Real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in -n/2..n/2.
    image_shape
        ``(z, y, x)``; 1 along an axis where k is 0.
    method
        ``"espirit"`` or ``"lowres"``.
    calibration_width
        Extent of the center that is used, in cycles/FOV; at most ``n`` along each axis. S spokes through the center
        sample it densely out to :math:`\sqrt{S / 2\pi}` in 3D and :math:`S / \pi` in 2D.
    interpolated
        Whether to return the maps as the small array and its interpolation. Between nodes their root of the sum of
        squares is then 1 only to about 1 %.

    Returns
    -------
    Tensor or InterpolatedMaps
        Maps, dtype of ``kspace``, shape ``(coil, z, y, x)``, no unit.

    Raises
    ------
    ValueError
        If a shape does not fit, an option is unknown, or the center is not sampled or zero.
    TypeError
        If a dtype does not fit.

    References
    ----------
    .. [1] Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA",
       MRM 71:990-1001, 2014, doi:10.1002/mrm.24751.
    .. [2] McKenzie, Yeh, Ohliger, Price and Sodickson, "Self-calibrating parallel imaging with automatic coil
       sensitivity extraction", MRM 47:529-538, 2002, doi:10.1002/mrm.10087.

    Examples
    --------
    >>> bk.estimate_maps(scan.kspace, scan.trajectory, scan.image_shape, calibration_width=6).shape
    torch.Size([4, 16, 12, 16])
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(map(repr, METHODS))}.")
    shape = check_shape3(image_shape)
    center = grid_center(kspace, trajectory, shape, calibration_width=calibration_width)
    nodes = _node_counts(shape, center.shape[1:])
    images = _low_resolution(center, nodes)
    signal = images.abs().square().sum(dim=0).sqrt()
    if method == "lowres":
        values = _normalize(images)
    else:
        values = smooth_phase(espirit(center, nodes, kernel_width=5 if min(nodes) > 1 else 6)[0], signal)
        values *= _turn_to_real(values, signal)
    maps = InterpolatedMaps(_continue(values, signal), shape)
    return maps if interpolated else _normalize(maps.full())


@torch.no_grad()
def grid_center(
    kspace: Tensor, trajectory: Tensor, image_shape: Sequence[int], *, calibration_width: int = 24
) -> Tensor:
    r"""Find the k-space at whole cycles/FOV in the center: :math:`\min_x \sum_s w_s |(F x - y)_s|^2`, then :math:`F x`.

    :math:`x` is an image of low resolution over the same field of view, and w the density compensation.

    Parameters
    ----------
    kspace, trajectory, image_shape, calibration_width
        As in :func:`estimate_maps`.

    Returns
    -------
    Tensor
        Complex, dtype of ``kspace``, shape ``(coil, z, y, x)`` of ``calibration_width`` each, or of the image if that
        is less; k = 0 at index ``n // 2``; the largest value is 1.

    Raises
    ------
    ValueError, TypeError
        As :func:`estimate_maps`.
    """
    check_kspace(kspace, trajectory)
    shape, width = check_shape3(image_shape), check_count(calibration_width, "calibration_width", 4)
    z, y, x = (min(n, width + 2 * _MARGIN) for n in shape)
    near = trajectory.abs() <= trajectory.new_tensor([z, y, x]) / 2
    central = near.all(dim=1)
    samples = kspace[:, central]
    largest = float(samples.abs().max()) if samples.numel() else 0.0
    if largest == 0:
        raise ValueError(
            f"kspace is zero, or not sampled, within {width / 2:g} cycles/FOV of the center. Are the columns of the "
            "trajectory kz ky kx, in cycles/FOV?"
        )
    k = trajectory[central]
    F = NUFFT(k, (z, y, x), tolerance=2e-5)
    weights = density_compensation(k, (z, y, x)).to(kspace.real.dtype)
    normal = F.toeplitz(weights)
    center = []
    for coil in samples / largest:
        image = conjugate_gradient(normal, F.adjoint(weights * coil), n_iterations=_GRID_ITERATIONS)
        spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image)))
        center.append(_middle(spectrum, [min(n, width) for n in shape]))
    result = torch.stack(center)
    return result / result.abs().max()


def _middle(values: Tensor, sizes: Sequence[int]) -> Tensor:
    for axis, size in enumerate(sizes):
        values = values.narrow(axis, values.shape[axis] // 2 - size // 2, size)
    return values


def _node_counts(shape: Shape3, widths: Sequence[int]) -> Shape3:
    z, y, x = (1 if n == 1 else max(3, min(n, _NODES * width)) for n, width in zip(shape, widths, strict=True))
    return z, y, x


def _low_resolution(center: Tensor, nodes: Shape3) -> Tensor:
    """Return the coils' images at the nodes, shape ``(coil, z, y, x)``, by a Hann window over the center."""
    images = center
    for axis, n_nodes in enumerate(nodes, start=1):
        width = center.shape[axis]
        k = torch.arange(width, dtype=torch.float64) - width // 2
        place = (torch.arange(n_nodes, dtype=torch.float64) - n_nodes // 2) / n_nodes
        turns = 2 * torch.pi * place[:, None] * k
        window = torch.cos(torch.pi * k / (width + 1)) ** 2
        transform = torch.polar(window.expand_as(turns), turns).to(images)
        images = torch.tensordot(images, transform, dims=([axis], [1])).movedim(-1, axis)
    return images


def _turn_to_real(values: Tensor, signal: Tensor) -> Tensor:
    """Return the phase factor with which the strongest coil is real on average; eigenvectors come with any phase."""
    energy = (signal * values.abs()).square().flatten(1).sum(dim=1)
    mean = (signal * values[int(energy.argmax())]).sum()
    return torch.where(mean.abs() > 0, mean.conj() / mean.abs(), 1)


def _continue(values: Tensor, signal: Tensor) -> Tensor:
    """Replace maps where there is little signal by the mean of those around, weighted by how much there is there."""
    wide, energy = values.to(torch.complex128), (signal / signal.max()).double().square()
    typical = energy.square().sum() / energy.sum()  # of the voxels that hold the energy: a few bright ones do not rule
    trust = energy / (energy + _TRUSTED**2 * typical)
    around = smooth(trust * wide, _REACH) / smooth(trust, _REACH).clamp_min(1e-300)
    return _normalize(trust * wide + (1 - trust) * around).to(values.dtype)


def _normalize(maps: Tensor) -> Tensor:
    """Divide by the root of the sum of squares over the coils, in place, coil by coil."""
    energy = torch.zeros_like(maps[0].real)
    for coil in maps:
        energy += coil.real.square() + coil.imag.square()
    maps *= energy.clamp_min(torch.finfo(energy.dtype).tiny).rsqrt()
    return maps
