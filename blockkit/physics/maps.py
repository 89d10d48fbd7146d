"""Coil sensitivity maps defined by a small array: full maps exist for one coil at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.checks import check_complex, check_finite, check_shape3, check_tensor

Array = NDArray[np.float64]


class InterpolatedMaps:
    r"""Coil sensitivity maps whose value at every voxel is *defined* as the interpolation of a small array.

    Maps are smooth, but at 450 x 300 x 450 twenty of them take 9.7 GB. Here only the small array is kept, and
    :class:`~blockkit.physics.sense.Encoding` asks for the maps of the coils it works on. Each coil is interpolated
    alone, always in the same order, so that maps made at once with :meth:`full` and maps made when needed agree to the
    bit.

    The interpolation is the cubic convolution of Keys along each axis, exact for polynomials of degree 2 away from the
    edges; beyond the outermost values the polynomial through the last three goes on. Positions follow the house: index
    :math:`i` of :math:`n` lies at :math:`(i - n // 2) / n` of the field of view, in the small array and in the volume.

    Parameters
    ----------
    values
        The small array, complex, shape ``(coil, z, y, x)``; each of z, y, x has 1 value, or 3 and more.
    image_shape
        ``(z, y, x)`` of the volume.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or a value is NaN or infinite.

    References
    ----------
    .. [1] Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6), 1981.

    Examples
    --------
    >>> maps = bk.InterpolatedMaps(torch.ones(8, 12, 10, 12, dtype=torch.complex64), (96, 80, 96))
    >>> maps.shape, maps[2:4].shape
    (torch.Size([8, 96, 80, 96]), torch.Size([2, 96, 80, 96]))
    """

    def __init__(self, values: Tensor, image_shape: Sequence[int]) -> None:
        check_tensor(values, "values")
        shape = check_shape3(image_shape)
        if values.ndim != 4 or not all(values.shape) or 2 in values.shape[1:]:
            raise ValueError(
                f"values has shape {tuple(values.shape)}, expected (coil, z, y, x), where z, y, x are 1 or at least 3."
            )
        check_complex(values, "values")
        if not isinstance(values, FakeTensor):
            check_finite(values, "values")
        self.values, self.shape = values.detach(), torch.Size((len(values), *shape))
        self.steps = [_interpolation(few, many, values) for few, many in zip(values.shape[1:], shape, strict=True)]

    ndim = 4
    requires_grad = False

    @property
    def dtype(self) -> torch.dtype:
        """That of the small array, and of the maps."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """That of the small array, and of the maps."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """What is kept: the small array."""
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, coils: slice) -> Tensor:
        """Return the maps of some coils, shape ``(coil, z, y, x)``."""
        small = self.values[coils]
        maps = small.new_empty((len(small), *self.shape[1:]))
        for each, full in zip(small, maps, strict=True):
            full.copy_(self._one(each))
        return maps

    def full(self) -> Tensor:
        """Return the maps of all coils, shape ``(coil, z, y, x)``."""
        return self[:]

    def to(self, device: torch.device | str) -> "InterpolatedMaps":
        """Return the same maps on another device."""
        return self if self.device == torch.device(device) else InterpolatedMaps(self.values.to(device), self.shape[1:])

    def _one(self, small: Tensor) -> Tensor:
        """Interpolate one coil, along z first: the volume's size is reached last."""
        for axis, step in enumerate(self.steps):
            small = torch.tensordot(step, small, dims=([1], [axis])).movedim(0, axis)
        return small


def _interpolation(n_few: int, n_many: int, like: Tensor) -> Tensor:
    """Return the matrix ``(n_many, n_few)`` that interpolates along one axis."""
    matrix = np.zeros((n_many, n_few))
    if n_few == 1:
        matrix[:] = 1
    else:
        place = (np.arange(n_many) - n_many // 2) * (n_few / n_many) + n_few // 2
        first = np.clip(np.floor(place).astype(int), 0, n_few - 2)
        weights = _keys(place - first)
        for i in range(n_many):
            for j, weight in enumerate(weights[i], start=first[i] - 1):
                _add(matrix[i], j, weight)
    return torch.from_numpy(matrix).to(device=like.device, dtype=like.dtype)


def _keys(t: Array) -> Array:
    """Return Keys' weights of the four values around ``t``, which is 0 at the second and 1 at the third."""
    return np.stack(
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        axis=-1,
    )


def _add(row: Array, j: int, weight: float) -> None:
    """Add the weight of value ``j``; one outside is the quadratic continuation of the three at that end."""
    if 0 <= j < len(row):
        row[j] += weight
        return
    last = 0 if j < 0 else len(row) - 1
    inwards = 1 if j < 0 else -1
    for steps, share in enumerate((3.0, -3.0, 1.0)):
        row[last + inwards * steps] += weight * share
