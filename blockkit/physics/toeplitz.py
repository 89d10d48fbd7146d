"""The normal operator of a NUFFT as one zero-padded FFT pair: its cost does not depend on the number of samples."""

import itertools
import math
from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from blockkit.checks import check_shape3
from blockkit.physics.linop import LinearOperator, apply_linear


class Toeplitz(LinearOperator):
    def __init__(self, kernel: Tensor, image_shape: Sequence[int]) -> None:
        self.in_shape = self.out_shape = check_shape3(image_shape)
        self.kernel = kernel
        self.spectral_bound = float(kernel.abs().max())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to an image (z, y, x), or to (coil, z, y, x)."""
        return apply_linear(x, self._apply, self._apply)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the operator: it is its own adjoint."""
        return self.forward(y)

    def _apply(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype.to_real())
        result = torch.empty_like(x)
        z, y, w = self.in_shape
        images = x.reshape(-1, *self.in_shape)
        for image, out in zip(images, result.view(-1, *self.in_shape), strict=True):
            spectrum = torch.fft.fftn(image, s=kernel.shape)
            spectrum *= kernel
            out.copy_(torch.fft.ifftn(spectrum)[:z, :y, :w])
        return result


def padded_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the FFT lengths: the next fast length from 2n - 1 on, for each axis."""
    z, y, x = (int(next_fast_len(2 * n - 1)) for n in image_shape)
    return z, y, x


def toeplitz_kernel(F: LinearOperator, weights: Tensor | None = None) -> Tensor:
    trajectory, shape = F.trajectory.double(), F.in_shape  # type: ignore[attr-defined]
    padded = padded_shape(shape)
    sizes = torch.tensor(shape, dtype=torch.float64, device=trajectory.device)
    w = torch.ones(F.out_shape, dtype=torch.float64) if weights is None else weights.double()
    lags = torch.zeros(shape[0], *padded[1:], dtype=torch.complex128)
    sides = [(0,)] + [(0, 1) if n > 1 else (0,) for n in shape[1:]]
    for octant in itertools.product(*sides):
        shift = [n // 2 - n * side for n, side in zip(shape, octant, strict=True)]
        phase = 2 * torch.pi * (trajectory * (torch.tensor(shift, device=sizes.device) / sizes)).sum(dim=1)
        part = F.adjoint(torch.polar(w, phase)) / math.sqrt(math.prod(shape))
        keep = [slice(side, None) for side in octant]
        place = [
            slice(p - n + 1, None) if side else slice(0, n) for p, n, side in zip(padded, shape, octant, strict=True)
        ]
        lags[tuple(place)] = part[tuple(keep)]
    lags = torch.fft.fft(torch.fft.fft(lags, dim=2), dim=1)
    return torch.fft.hfft(lags, n=padded[0], dim=0)
