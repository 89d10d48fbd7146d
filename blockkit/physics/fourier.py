"""From image to k-space at any sample positions: the exact sum, and the fast NUFFT that is tested against it."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit import ledger
from blockkit.checks import Shape3, check_number, check_shape3
from blockkit.physics.engines import Engine, choose_engine, finest_tolerance, oversampling, workspace_bytes
from blockkit.physics.inputs import check_coils, check_trajectory
from blockkit.physics.linop import LinearOperator, apply_linear
from blockkit.physics.toeplitz import Toeplitz, kernel_piece, padded_shape, toeplitz_kernel

__all__ = ["NUFFT", "DirectFourier", "Toeplitz", "toeplitz_pays"]

_CHUNK = 2**20  # complex numbers held at a time by the exact sum


class DirectFourier(LinearOperator):
    r"""Sum the Fourier series exactly: the slow oracle that the fast operators are tested against.

    .. math:: y_s = \frac{1}{\sqrt{N}} \sum_r x_r \exp\left(-2\pi i \sum_a k_{s,a} r_a / n_a\right),
              \qquad r_a = -\lfloor n_a/2 \rfloor, \dots, \lceil n_a/2 \rceil - 1

    with :math:`N = n_z n_y n_x` voxels: orthonormal scale, minus sign, the image's center at index ``n // 2``.
    The cost is one multiplication per sample and voxel; memory beyond the result is about 50 MB.

    Parameters
    ----------
    trajectory
        Sample positions, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in -n/2..n/2.
    image_shape
        ``(z, y, x)``.

    Raises
    ------
    ValueError, TypeError
        If the trajectory is not real, finite, ``(sample, 3)`` and within -n/2..n/2.

    Examples
    --------
    >>> k, x = bk.radial_3d(20, 16, (8, 6, 8)), torch.ones(8, 6, 8, dtype=torch.complex64)
    >>> exact, fast = bk.DirectFourier(k, (8, 6, 8))(x), bk.NUFFT(k, (8, 6, 8), tolerance=1e-4)(x)
    >>> bool((fast - exact).norm() < 1e-4 * exact.norm())
    True
    """

    in_shape: Shape3
    out_shape: tuple[int]

    def __init__(self, trajectory: Tensor, image_shape: Sequence[int]) -> None:
        self.in_shape = check_shape3(image_shape)
        self.trajectory = check_trajectory(trajectory, self.in_shape)
        self.out_shape = (trajectory.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        """Sample an image: (z, y, x) to (sample,), or (coil, z, y, x) to (coil, sample), complex."""
        check_coils(x, self.in_shape, "image", self.device)
        return apply_linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose: (sample,) to (z, y, x), or (coil, sample) to (coil, z, y, x), complex."""
        check_coils(y, self.out_shape, "kspace", self.device)
        return apply_linear(y, self._adjoint, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        parts = [
            torch.einsum("...zys,zs,ys->...s", x @ ex, ez, ey) for _, ez, ey, ex in self._phases(x.dtype)
        ]  # one axis at a time: x by a matrix product, then y and z
        return torch.cat(parts, dim=-1) / math.sqrt(math.prod(self.in_shape))

    def _adjoint(self, y: Tensor) -> Tensor:
        image = torch.zeros(*y.shape[:-1], *self.in_shape, dtype=y.dtype, device=y.device)
        for chunk, ez, ey, ex in self._phases(y.dtype):
            image += torch.einsum("...s,zs,ys->...zys", y[..., chunk], ez.conj(), ey.conj()) @ ex.mH
        return image / math.sqrt(math.prod(self.in_shape))

    def _phases(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield chunks of samples, each with its phase factors (voxel, sample) along z, y and x."""
        step = max(1, _CHUNK // (self.in_shape[0] * self.in_shape[1]))
        for start in range(0, self.out_shape[0], step):
            k = self.trajectory[start : start + step].to(_home(self.device)).double()
            phases = []
            for axis, n in enumerate(self.in_shape):
                r = torch.arange(n, dtype=torch.float64, device=k.device) - n // 2
                turn = -2 * torch.pi * r[:, None] * k[:, axis] / n
                phases.append(torch.polar(torch.ones_like(turn), turn).to(dtype).to(self.device))
            yield slice(start, start + step), phases[0], phases[1], phases[2]


class NUFFT(LinearOperator):
    r"""Sample an image at any k-space positions in :math:`O(N \log N + \text{samples})`, to a stated tolerance.

    .. math:: y_s = \frac{1}{\sqrt{N}} \sum_r x_r \exp\left(-2\pi i \sum_a k_{s,a} r_a / n_a\right)

    the sum of :class:`DirectFourier`: orthonormal scale, minus sign, the image's center at index ``n // 2``. The
    adjoint is the conjugate transpose of the forward to rounding, whatever the tolerance. Coils are done one after
    another, so the workspace is that of one: a fine grid of about 2 x the image (8 x for a tolerance below 1e-3 in
    complex64, or below 2e-6 in complex128) and in the adjoint up to twice that.

    Parameters
    ----------
    trajectory
        Sample positions, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in -n/2..n/2.
    image_shape
        ``(z, y, x)``.
    engine
        ``"finufft"`` (CPU), ``"cufinufft"`` (CUDA, optional), ``"torchkbnufft"`` (any device, some 50 x slower,
        tolerance at least 2e-5), or ``"auto"``: the fastest one that is installed for the trajectory's device.
    tolerance
        Largest relative error (2-norm) against the exact sum, 1e-12 to 0.1. In complex64 rounding adds about 1e-7
        times the number of voxels along the longest axis.

    Attributes
    ----------
    engine : str
        The name of the engine that does the work: never ``"auto"``.

    Raises
    ------
    ValueError, TypeError
        If the trajectory is not real, finite, ``(sample, 3)`` and within -n/2..n/2; if the tolerance is out of reach.
    ImportError
        If the engine asked for is not installed.

    References
    ----------
    .. [1] Fessler and Sutton, "Nonuniform fast Fourier transforms using min-max interpolation", IEEE Trans. Signal
       Process. 51:560-574, 2003.
    .. [2] Barnett, Magland and af Klinteberg, "A parallel nonuniform fast Fourier transform library based on an
       'exponential of semicircle' kernel", SIAM J. Sci. Comput. 41:C479-C504, 2019.

    Examples
    --------
    >>> k = bk.radial_3d(50, 32, (16, 12, 16))
    >>> F = bk.NUFFT(k, (16, 12, 16))
    >>> kspace = F(torch.ones(16, 12, 16, dtype=torch.complex64))
    >>> kspace.shape, F.adjoint(kspace).shape
    (torch.Size([1600]), torch.Size([16, 12, 16]))
    """

    in_shape: Shape3
    out_shape: tuple[int]

    def __init__(
        self, trajectory: Tensor, image_shape: Sequence[int], *, engine: str = "auto", tolerance: float = 1e-4
    ) -> None:
        if not 1e-12 <= check_number(tolerance, "tolerance") <= 0.1:
            raise ValueError(f"tolerance is {tolerance!r}, expected a relative error from 1e-12 to 0.1, such as 1e-4.")
        self.in_shape = check_shape3(image_shape)
        self.trajectory = check_trajectory(trajectory, self.in_shape)
        self.out_shape = (trajectory.shape[0],)
        self._kind = choose_engine(engine, _home(self.device), tolerance)
        self.engine, self.tolerance = self._kind.name, tolerance
        self._asked_for = engine
        self._engine: Engine | None = None
        if self.device != _home(self.device):
            warnings.warn(f"No NUFFT runs on {self.device}: it runs on the CPU, and comes back.", stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_engine": None}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, engine={self.engine!r}, tolerance={self.tolerance:g})"

    def to(self, device: torch.device | str) -> Self:
        """Return a new operator on ``device``, with the engine that ``engine`` means there; this one stays as it is."""
        return type(self)(self.trajectory.to(device), self.in_shape, engine=self._asked_for, tolerance=self.tolerance)

    def forward(self, x: Tensor) -> Tensor:
        """Sample an image: (z, y, x) to (sample,), or (coil, z, y, x) to (coil, sample), complex."""
        check_coils(x, self.in_shape, "image", self.device)
        return apply_linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose: (sample,) to (z, y, x), or (coil, sample) to (coil, z, y, x), complex."""
        check_coils(y, self.out_shape, "kspace", self.device)
        return apply_linear(y, self._adjoint, self._forward)

    def toeplitz(self, weights: Tensor | None = None) -> Toeplitz:
        r"""Return :math:`F^H W F` as one operator of a padded FFT pair, to this NUFFT's tolerance.

        Parameters
        ----------
        weights
            The diagonal of W, real, not negative, shape ``(sample,)``, such as the density compensation. None: 1.

        Returns
        -------
        Toeplitz
            Differs from the exact :math:`F^H W F` by at most ``tolerance`` relative to its largest eigenvalue.
        """
        trajectory = self.trajectory.to(_home(self.device))
        weights = weights.to(trajectory.device) if isinstance(weights, Tensor) else weights
        tolerance = max(self.tolerance / 10, finest_tolerance(self._kind))
        F = NUFFT(trajectory, self.in_shape, engine=self.engine, tolerance=tolerance)
        dtype = torch.float32 if self.tolerance >= 1e-5 else torch.float64
        piece = F.resized(kernel_piece(self.in_shape))
        return Toeplitz(
            toeplitz_kernel(piece, trajectory, self.in_shape, weights, dtype=dtype).to(self.device), self.in_shape
        )

    def resized(self, image_shape: Sequence[int]) -> Self:
        """Return the NUFFT of an image with more or fewer voxels of the same size, at the same samples."""
        other = copy.copy(self)  # not checked again: on a larger grid small k may look like cycles per voxel
        other.in_shape, other._engine = check_shape3(image_shape), None
        factors = [m / n for m, n in zip(other.in_shape, self.in_shape, strict=True)]
        scaled = self.trajectory.to(_home(self.device)).double()
        scaled *= torch.tensor(factors, dtype=torch.float64, device=scaled.device)
        exact = self.device == _home(self.device)  # elsewhere there may be no double precision
        other.trajectory = scaled if exact else scaled.to(self.device, self.trajectory.dtype)
        return other

    def forget_plans(self) -> None:
        """Free the engine's plans and tables; the next use makes them again. For who keeps many operators."""
        self._engine = None

    def _forward(self, x: Tensor) -> Tensor:
        y = x.new_empty(*x.shape[:-3], *self.out_shape)
        self._run(x, y, adjoint=False)
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.new_empty(*y.shape[:-1], *self.in_shape)
        self._run(y, x, adjoint=True)
        return x

    def _run(self, source: Tensor, result: Tensor, *, adjoint: bool) -> None:
        """Fill ``result`` coil by coil. A fake ``result`` stays empty: its workspace is declared all the same."""
        source_shape, result_shape = (self.out_shape, self.in_shape) if adjoint else (self.in_shape, self.out_shape)
        source = source.resolve_conj().resolve_neg().contiguous()
        fake = isinstance(result, FakeTensor)
        n_bytes = 0
        if self._kind.outside_torch or fake:
            n_bytes = workspace_bytes(
                self._kind, self.in_shape, self.out_shape[0], result.dtype, self.tolerance, adjoint=adjoint
            )
        with ledger.outside_torch(n_bytes):
            if not fake:
                run = self._step(adjoint)
                for one, out in zip(source.view(-1, *source_shape), result.view(-1, *result_shape), strict=True):
                    run(one, out)
        _scale(result, 1 / math.sqrt(math.prod(self.in_shape)))

    def _step(self, adjoint: bool) -> Callable[[Tensor, Tensor], None]:
        if self._engine is None:
            self._engine = self._kind(self.trajectory.to(_home(self.device)), self.in_shape, self.tolerance)
        step = self._engine.spread if adjoint else self._engine.sample
        return step if self.device == _home(self.device) else lambda source, result: _away(step, source, result)


def toeplitz_pays(image_shape: Sequence[int], n_samples: int, tolerance: float = 1e-4) -> bool:
    """Say whether :class:`Toeplitz` is the faster normal: nearly always.

    A fixed rule of the sizes, so that the same scan is always done the same way. Below a tolerance of 1e-3 the NUFFT
    needs a fine grid as large as the padded one and fills all of it, which takes longer whatever the samples. From
    1e-3 on its grid is 1.25 x the image on each axis; then it pays to pad if the grid is large (2^23 points), where
    memory is what takes time, or if the samples are at least 1/100 of it. ``benchmarks/nufft.py`` measures it.
    """
    n_padded = math.prod(padded_shape(check_shape3(image_shape)))
    return oversampling(torch.complex64, tolerance) == 2 or n_padded >= 2**23 or 100 * n_samples >= n_padded


def _home(device: torch.device) -> torch.device:
    """Return where the work for ``device`` is done: there if it is CPU or CUDA, else on the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def _scale(result: Tensor, factor: float) -> None:
    """Multiply in place; on a CPU by NumPy, as torch's threads would spin on into the next call and slow it down."""
    if result.device.type != "cpu" or isinstance(result, FakeTensor):
        result.mul_(factor)
    else:
        numbers = torch.view_as_real(result).numpy()
        numbers *= factor


def _away(step: Callable[[Tensor, Tensor], None], source: Tensor, result: Tensor) -> None:
    worked = torch.empty(result.shape, dtype=result.dtype)
    step(source.cpu(), worked)
    result.copy_(worked)
