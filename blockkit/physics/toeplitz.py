"""The normal operator of a NUFFT as one zero-padded FFT pair: its cost does not depend on the number of samples."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.checks import Shape3, check_complex, check_finite, check_shape3, check_tensor
from blockkit.physics.linop import LinearOperator, apply_linear

_SLAB = {"cpu": 2**18}  # complex numbers in one padded slab: what a core's cache holds
_SLAB_ELSEWHERE = 2**24
_MOST_IN_PIECE = 2**24  # voxels


class Toeplitz(LinearOperator):
    r"""Convolve an image with a kernel on a padded grid: :math:`T x = C\,\mathcal F^{-1} K\, \mathcal F\, P x`.

    P pads with zeros to the kernel's shape (at least 2n - 1 per axis), C cuts the image out again, and K is the
    kernel's spectrum, which is real, so T is its own adjoint. :meth:`NUFFT.toeplitz` makes the kernel for which T is
    :math:`F^H W F`. The padded grid never exists as a whole: z is transformed first, then slab by slab y and x, so
    the memory is about 2 x the image and not 17 x.

    Parameters
    ----------
    kernel
        Spectrum K, real, shape (z, y, x) padded, in FFT order (zero frequency first).
    image_shape
        ``(z, y, x)``.

    Attributes
    ----------
    spectral_bound : float
        ``max |K|``: the largest eigenvalue of T is at most this, since T is a compression of a circulant operator.

    Raises
    ------
    ValueError, TypeError
        If the kernel is not real, finite and at least 2n - 1 long on each axis.

    References
    ----------
    .. [1] Fessler, Lee, Olafsson, Shi and Noll, "Toeplitz-based iterative image reconstruction for MRI with
       correction for magnetic field inhomogeneity", IEEE Trans. Signal Process. 53:3393-3402, 2005.

    Examples
    --------
    >>> x = torch.ones(16, 12, 16, dtype=torch.complex64)
    >>> identity = bk.Toeplitz(torch.ones(32, 24, 32), (16, 12, 16))
    >>> torch.allclose(identity(x), x, atol=1e-5)
    True
    >>> F = bk.NUFFT(scan.trajectory, (16, 12, 16))
    >>> bool((F.toeplitz()(x) - F.normal(x)).norm() < 1e-3 * F.normal(x).norm())
    True
    """

    in_shape: Shape3
    out_shape: Shape3

    def __init__(self, kernel: Tensor, image_shape: Sequence[int]) -> None:
        self.in_shape = self.out_shape = shape = check_shape3(image_shape)
        check_tensor(kernel, "kernel")
        if kernel.ndim != 3 or any(p < 2 * n - 1 for p, n in zip(kernel.shape, shape, strict=True)):
            least = tuple(2 * n - 1 for n in shape)
            raise ValueError(f"kernel has shape {tuple(kernel.shape)}, expected (z, y, x) of at least {least}.")
        if not kernel.is_floating_point():
            raise TypeError(f"kernel has dtype {kernel.dtype}, expected a real spectrum, torch.float32 or float64.")
        self.kernel = kernel.detach()
        self.spectral_bound = 1.0
        if not isinstance(kernel, FakeTensor):
            check_finite(kernel, "kernel")
            lowest, highest = torch.aminmax(self.kernel)
            self.spectral_bound = max(-float(lowest), float(highest))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to an image (z, y, x), or to (coil, z, y, x), complex."""
        check_tensor(x, "image")
        if x.ndim not in (3, 4) or tuple(x.shape[-3:]) != self.in_shape:
            expected = f"expected (z, y, x) = {self.in_shape}, or the same with one coil axis in front"
            raise ValueError(f"image has shape {tuple(x.shape)}, {expected}.")
        check_complex(x, "image")
        return apply_linear(x, self._apply, self._apply)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the operator, which is its own adjoint."""
        return self.forward(y)

    def _apply(self, x: Tensor) -> Tensor:
        nz, ny, nx = self.in_shape
        pz, py, px = self.kernel.shape
        result = x.new_empty(x.shape)
        work = x.new_empty(pz, ny, nx)
        fake = isinstance(x, FakeTensor)
        images, outs = x.reshape(-1, nz, ny, nx), result.view(-1, nz, ny, nx)
        for image, out in zip(images, outs, strict=True):
            for rows in _slabs(ny, pz * nx, work.device, fake):
                work[:, rows] = torch.fft.fft(image[:, rows], n=pz, dim=0)
            for planes in _slabs(pz, py * px, work.device, fake):
                spectrum = torch.fft.fft2(work[planes], s=(py, px))
                spectrum *= self.kernel[planes].to(x.dtype.to_real())
                work[planes] = torch.fft.ifft2(spectrum)[:, :ny, :nx]
                del spectrum  # or it would be there beside the next
            for rows in _slabs(ny, pz * nx, work.device, fake):
                out[:, rows] = torch.fft.ifft(work[:, rows], dim=0)[:nz]
        return result


def toeplitz_kernel(
    F: LinearOperator,
    trajectory: Tensor,
    image_shape: Sequence[int],
    weights: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Return the real spectrum of the kernel :math:`t_d = \frac1N \sum_s w_s e^{2\pi i\,k_s \cdot d/n}`.

    The lags d run over -n+1..n-1: twice the image per axis. They are computed in pieces, each by one adjoint with
    shifted phases, so no grid larger than a piece's own is needed; as :math:`t_{-d}` is the conjugate of :math:`t_d`,
    the lags of one sign along z suffice, and the last transform gives real numbers.

    Parameters
    ----------
    F
        The operator whose normal is wanted, orthonormal, (z, y, x) to (sample,), for an image of ``image_shape`` or a
        piece of it.
    trajectory
        Its sample positions, shape ``(sample, 3)``, cycles/FOV of the whole image.
    image_shape
        ``(z, y, x)``.
    weights
        Real, not negative, shape ``(sample,)``; None means 1.
    dtype
        Precision of the result, ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    Tensor
        Real, shape of :func:`padded_shape`, in FFT order.
    """
    shape, piece = check_shape3(image_shape), check_shape3(F.in_shape)
    padded = padded_shape(shape)
    weights = _check_weights(weights, trajectory)
    lags = torch.zeros(shape[0], *padded[1:], dtype=dtype.to_complex(), device=trajectory.device)
    signs = (False, True, True)
    for starts in itertools.product(*map(_starts, shape, piece, signs)):
        shift = [(start + m // 2) / n for start, m, n in zip(starts, piece, shape, strict=True)]
        turns = trajectory.double() @ torch.tensor(shift, dtype=torch.float64, device=trajectory.device)
        part = F.adjoint(torch.polar(weights, turns.mul_(2 * torch.pi))) * (math.prod(piece) ** 0.5 / math.prod(shape))
        kept = [min(m, (0 if start < 0 else n) - start) for start, m, n in zip(starts, piece, shape, strict=True)]
        place = [slice(start % p, start % p + n) for start, p, n in zip(starts, padded, kept, strict=True)]
        lags[tuple(place)] = part[tuple(map(slice, kept))]
    for plane in lags:
        plane.copy_(torch.fft.fft2(plane))
    spectrum = torch.empty(padded, dtype=dtype, device=lags.device)
    for rows in _slabs(padded[1], padded[0] * padded[2], lags.device, fake=False):
        spectrum[:, rows] = torch.fft.hfft(lags[:, rows], n=padded[0], dim=0)
    return spectrum


def kernel_piece(image_shape: Sequence[int]) -> Shape3:
    """Return the shape of the pieces in which a kernel is made: the image, halved until it is small enough."""
    piece = list(check_shape3(image_shape))
    while math.prod(piece) > _MOST_IN_PIECE:
        longest = piece.index(max(piece))
        piece[longest] = -(-piece[longest] // 2)
    return piece[0], piece[1], piece[2]


def padded_shape(image_shape: Sequence[int]) -> Shape3:
    """Return the next fast FFT length from 2n - 1 on, for each axis: 1 stays 1."""
    z, y, x = (int(next_fast_len(2 * n - 1)) for n in image_shape)
    return z, y, x


def slab_rows(n_each: int, device_type: str) -> int:
    """Return how many rows or planes of ``n_each`` numbers make a slab: about what a cache holds."""
    return max(1, _SLAB.get(device_type, _SLAB_ELSEWHERE) // n_each)


def _starts(n: int, m: int, both_signs: bool) -> list[int]:
    """Return the first lag of each piece of ``m`` lags: none has lags of both signs."""
    return [*(range(1 - n, 0, m) if both_signs else ()), *range(0, n, m)]


def _check_weights(weights: Tensor | None, trajectory: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(trajectory), dtype=torch.float64, device=trajectory.device)
    check_tensor(weights, "weights")
    if tuple(weights.shape) != (len(trajectory),):
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (sample,) = ({len(trajectory)},).")
    if not weights.is_floating_point():
        raise TypeError(f"weights has dtype {weights.dtype}, expected real numbers. Write weights.float().")
    if not isinstance(weights, FakeTensor):
        check_finite(weights, "weights")
        if float(weights.min()) < 0:
            raise ValueError(f"weights has a negative value, {float(weights.min()):g}, expected none.")
    return weights.detach().double()


def _slabs(n: int, n_each: int, device: torch.device, fake: bool) -> Iterator[slice]:
    """Cut 0..n into slabs. Fake tensors see only the first: the largest, so the peak."""
    step = slab_rows(n_each, device.type)
    for start in range(0, n, step):
        yield slice(start, start + step)
        if fake:
            return
