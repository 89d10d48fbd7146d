"""Sparsity: an orthonormal 3D wavelet transform that runs where its image is, and the complex soft threshold."""

import functools
from collections.abc import Sequence

import numpy as np
import pywt
import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_image, check_shape3, check_tensor
from blockkit.physics.linop import LinearOperator

NO_SHIFT: Shape3 = (0, 0, 0)


class Wavelet(LinearOperator):
    r"""The periodic orthonormal wavelet transform :math:`W` of a 3D image, :math:`W^H W = I`.

    Every level halves each axis that is long enough: an axis has as many levels as it can be halved while it keeps at
    least the filter's length (that of PyWavelets' ``dwt_max_level``), so a thin axis, one voxel for instance, has
    none. An axis whose length its levels do not divide is padded with zeros at its end, up to ``padded_shape``: then
    :math:`W` keeps norms and ``adjoint`` still undoes ``forward``, but there are more coefficients than voxels, and
    ``forward`` after ``adjoint`` is a projection. Build it on ``padded_shape`` itself to have both.

    Each axis is transformed by a product with its small orthonormal matrix: exact at any size, on any device, and a
    circular shift costs nothing. Cost: about :math:`4 (n_z + n_y + n_x)` operations a voxel, four images of memory.

    Parameters
    ----------
    image_shape
        ``(z, y, x)``, voxels.
    name
        Any orthogonal wavelet of PyWavelets; ``"db4"``, with filters of 8 taps, by default.
    n_levels
        The most levels on any axis; as many as fit by default.

    Raises
    ------
    ValueError
        If the wavelet is unknown or not orthogonal, or a number is out of range.

    References
    ----------
    .. [1] Mallat, "A theory for multiresolution signal decomposition: the wavelet representation",
       IEEE Trans. PAMI 11:674-693, 1989.
    """

    def __init__(self, image_shape: Sequence[int], *, name: str = "db4", n_levels: int | None = None) -> None:
        self.in_shape = check_shape3(image_shape)
        self.name, filter_length = name, _filters(name).shape[1]
        most = 99 if n_levels is None else check_count(n_levels, "n_levels", least=0)
        z, y, x = (min(most, pywt.dwt_max_level(n, filter_length)) for n in self.in_shape)
        self.n_levels: Shape3 = (z, y, x)
        z, y, x = (-(-n // 2**level) * 2**level for n, level in zip(self.in_shape, self.n_levels, strict=True))
        self.out_shape = self.padded_shape = (z, y, x)

    def forward(self, x: Tensor, shift: Shape3 = NO_SHIFT) -> Tensor:
        """Image ``(z, y, x)`` to coefficients, those of the image rolled by ``shift`` voxels, coarse ones first."""
        check_image(x, self.in_shape)
        planes = pad(torch.stack([x.real, x.imag]), self.padded_shape)
        for level in range(max(self.n_levels)):
            planes = self._level(planes, level, shift, inverse=False)
        return torch.complex(planes[0], planes[1])

    def adjoint(self, y: Tensor, shift: Shape3 = NO_SHIFT) -> Tensor:
        """Coefficients to image ``(z, y, x)``, rolled back by ``shift``: the inverse of ``forward``."""
        check_image(y, self.out_shape, "coefficients")
        planes = torch.stack([y.real, y.imag])
        for level in reversed(range(max(self.n_levels))):
            planes = self._level(planes, level, shift, inverse=True)
        planes = crop(planes, self.in_shape)
        return torch.complex(planes[0], planes[1])

    def random_shift(self, generator: torch.Generator) -> Shape3:
        """Draw a shift, uniformly among all that give the transform other coefficients."""
        z, y, x = (int(torch.randint(2**level, (), generator=generator)) for level in self.n_levels)
        return z, y, x

    def largest_coefficient(self, x: Tensor) -> float:
        """Return the largest magnitude among the coefficients of ``x`` under every circular shift.

        It comes from the undecimated transform, at the cost of about five transforms a level. An image that needs
        padding is shifted after it.
        """
        check_image(x, self.in_shape)
        planes = pad(torch.stack([x.real, x.imag]), self.padded_shape)
        return max(self._largest_at(planes, level) for level in range(max(1, *self.n_levels)))

    def _largest_at(self, planes: Tensor, level: int) -> float:
        bands, largest = [(planes, True)], 0.0
        for axis, (n, n_levels) in enumerate(zip(self.padded_shape, self.n_levels, strict=True)):
            low = _shifted_filters(self.name, n, min(level + 1, n_levels), False, planes)
            high = _shifted_filters(self.name, n, level + 1, True, planes) if level < n_levels else None
            bands = [
                (_along(axis, matrix, band), coarse and matrix is low)
                for band, coarse in bands
                for matrix in (low, high)
                if matrix is not None
            ]
        last = level + 1 >= max(self.n_levels)
        for band, coarse in bands:
            if last or not coarse:
                largest = max(largest, float(band[0].hypot(band[1]).max()))
        return largest

    def _level(self, planes: Tensor, level: int, shift: Shape3, *, inverse: bool) -> Tensor:
        """Transform the corner of the coefficients that is still coarse, in place but for level 0."""
        z, y, x = (n >> min(level, most) for n, most in zip(self.padded_shape, self.n_levels, strict=True))
        corner = result = planes[:, :z, :y, :x]
        for axis in range(3):
            if level < self.n_levels[axis]:
                matrix = _matrix(self.name, corner.shape[axis + 1], corner.dtype, corner.device)
                if level == 0 and shift[axis]:
                    matrix = matrix.roll(-shift[axis], dims=1)
                result = _along(axis, matrix.T if inverse else matrix, result)
        if level == 0:
            return result
        corner.copy_(result)
        return planes


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    r"""Shrink each magnitude and keep each phase: :math:`x \max(0, 1 - \lambda / |x|)`.

    This is the proximal map of :math:`\lambda \|x\|_1` on complex (or real) numbers.

    Parameters
    ----------
    x
        Complex or real, any shape.
    threshold
        :math:`\lambda`, in the unit of ``x``, not negative.

    Raises
    ------
    ValueError
        If the threshold is negative or not a number.
    """
    check_tensor(x, "x")
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}, expected a number of at least 0.")
    magnitude = x.abs()
    kept = (magnitude - threshold).clamp_(min=0)
    return x * kept.div_(magnitude.clamp_(min=torch.finfo(magnitude.dtype).tiny))


def pad(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Append zeros to the last three axes up to ``shape``: the adjoint of :func:`crop`."""
    if tuple(x.shape[-3:]) == tuple(shape):
        return x
    z, y, w = x.shape[-3:]
    wider = x.new_zeros(*x.shape[:-3], *shape)
    wider[..., :z, :y, :w] = x
    return wider


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut the last three axes to ``shape``, from the start."""
    z, y, w = shape
    return x[..., :z, :y, :w]


def _along(axis: int, matrix: Tensor, planes: Tensor) -> Tensor:
    """Multiply one axis of ``(plane, z, y, x)`` by a matrix."""
    if axis == 2:
        return planes @ matrix.T
    if axis == 1:
        return matrix @ planes
    return (matrix @ planes.flatten(2)).reshape(planes.shape[0], -1, *planes.shape[2:])


@functools.lru_cache(maxsize=64)
def _matrix(name: str, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One level on a periodic axis of even length n: n/2 rows of the low-pass filter, then n/2 of the high-pass.

    The order and the origin are those of PyWavelets' mode "periodization".
    """
    filters = _filters(name)
    length = filters.shape[1]
    matrix = torch.zeros(2, n // 2, n, dtype=torch.float64)
    row = torch.arange(n // 2)
    for tap in range(length):
        matrix[:, row, (2 * row + tap + 1 - length // 2) % n] += filters[:, tap, None]
    return matrix.reshape(n, n).to(dtype=dtype, device=device)


def _filters(name: str) -> Tensor:
    """Low-pass and high-pass taps of an orthonormal wavelet, shape (2, taps), float64."""
    if name in pywt.wavelist(kind="discrete"):
        taps = np.array(pywt.Wavelet(name).filter_bank[:2])
        products = np.correlate(taps[0], taps[0], "full")[taps.shape[1] - 1 :: 2]
        if pywt.Wavelet(name).orthogonal and np.allclose(products, np.eye(1, len(products)), atol=1e-8):
            return torch.from_numpy(taps[:, ::-1].copy())
    raise ValueError(f"name is {name!r}, expected an orthogonal wavelet of PyWavelets, such as 'haar' or 'db4'.")


def _shifted_filters(name: str, n: int, level: int, high: bool, like: Tensor) -> Tensor:
    """Every circular shift of the filter that gives the coarse (or the detail) coefficients after ``level`` levels."""
    taps = torch.eye(n, dtype=torch.float64)[:1]
    if level:
        taps = _matrix(name, n >> (level - 1), torch.float64, torch.device("cpu"))
        taps = taps[len(taps) // 2 :][:1] if high else taps[:1]
    for finer in reversed(range(level - 1)):
        coarse = _matrix(name, n >> finer, torch.float64, torch.device("cpu"))
        taps = taps @ coarse[: len(coarse) // 2]
    index = torch.arange(n)
    return taps[0, (index - index[:, None]) % n].to(like)
