"""The part of k-space that a trajectory samples, and an image with no more than that in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_shape3

_ROUND_AXES = {"ellipsoid": (0, 1, 2), "cylinder": (1, 2), "box": ()}
"""Regions of k-space, from small to large, each with the axes along which it is round."""


def limit_band(volume: Tensor, image_shape: Sequence[int], region: str = "ellipsoid") -> Tensor:
    r"""Return ``volume`` on ``image_shape``, with only one region of its k-space kept.

    Parameters
    ----------
    volume
        Complex, shape ``(z, y, x)``, at least as fine as ``image_shape``.
    image_shape
        ``(z, y, x)`` of the result; its ``n`` set the region.
    region
        ``"ellipsoid"``, :math:`\sum_i (2 k_i / n_i)^2 \le 1`; ``"cylinder"``, the same sum over y and x only; or
        ``"box"``, all that ``image_shape`` can hold.

    Returns
    -------
    Tensor
        Complex, shape ``image_shape``; a constant keeps its value, and voxel ``n // 2`` stays where it is.

    Raises
    ------
    ValueError
        If there is no such region.
    """
    if region not in _ROUND_AXES:
        raise ValueError(f"region is {region!r}, expected one of {', '.join(map(repr, _ROUND_AXES))}.")
    shape, axes = check_shape3(image_shape), _ROUND_AXES[region]
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume), norm="forward"))
    radius = torch.zeros(())
    for axis, (n, n_fine) in enumerate(zip(shape, volume.shape, strict=True)):
        spectrum = spectrum.narrow(axis, n_fine // 2 - n // 2, n)
        k = torch.arange(n, device=volume.device) - n // 2
        radius = radius[..., None] + (2 * k / n) ** 2 * (axis in axes)
    spectrum = spectrum * (radius <= 1 + 1e-6)
    image: Tensor = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum), norm="forward"))
    return image


def smallest_region(trajectory: Tensor, shape: Shape3) -> str:
    """Return the first region that has all samples in it, but for rounding."""
    squares = (2 * trajectory.double() / torch.tensor(shape)).square()
    largest = {region: float(squares[:, axes].sum(dim=1).max()) for region, axes in _ROUND_AXES.items() if axes}
    return next((region for region, value in largest.items() if value <= 1 + 1e-5), "box")
