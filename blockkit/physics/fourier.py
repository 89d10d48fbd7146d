"""From image to k-space at any sample positions: the exact sum, and the fast NUFFT that is tested against it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit import ledger
from blockkit.checks import check_complex, check_finite, check_shape3, check_tensor
from blockkit.physics.engines import Engine, fine_grid_bytes, make_engine
from blockkit.physics.linop import LinearOperator, apply_linear
from blockkit.physics.toeplitz import Toeplitz, toeplitz_kernel


class NUFFT(LinearOperator):
    def __init__(
        self, trajectory: Tensor, image_shape: Sequence[int], *, engine: str = "auto", tolerance: float = 1e-4
    ) -> None:
        shape = check_shape3(image_shape)
        check_trajectory(trajectory, shape)
        self.trajectory = trajectory.detach().contiguous()
        self.engine, self.tolerance = engine, tolerance
        self.in_shape, self.out_shape = shape, (trajectory.shape[0],)
        self._scale = 1 / math.sqrt(math.prod(shape))
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_engine": None}

    def forward(self, x: Tensor) -> Tensor:
        """Sample an image: (z, y, x) to (sample,), or (coil, z, y, x) to (coil, sample)."""
        check_coils(x, self.in_shape, "image")
        return apply_linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose: (sample,) to (z, y, x), or (coil, sample) to (coil, z, y, x)."""
        check_coils(y, self.out_shape, "kspace")
        return apply_linear(y, self._adjoint, self._forward)

    def toeplitz(self, weights: Tensor | None = None) -> Toeplitz:
        F = NUFFT(self.trajectory, self.in_shape, engine=self.engine, tolerance=self.tolerance / 10)
        return Toeplitz(toeplitz_kernel(F, weights), self.in_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.in_shape, self.out_shape, "sample")

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._run(y, self.out_shape, self.in_shape, "spread")

    def _run(self, value: Tensor, from_shape: tuple[int, ...], to_shape: tuple[int, ...], method: str) -> Tensor:
        value = value.resolve_conj().contiguous()
        coils = value.shape[: value.ndim - len(from_shape)]
        result = torch.empty(*coils, *to_shape, dtype=value.dtype, device=value.device)
        with ledger.outside_torch(fine_grid_bytes(self.in_shape, value.dtype, self.tolerance)):  # type: ignore[arg-type]
            if not isinstance(value, FakeTensor):
                if self._engine is None:
                    self._engine = make_engine(self.engine, self.trajectory, self.in_shape, self.tolerance)  # type: ignore[arg-type]
                run = getattr(self._engine, method)
                for one, out in zip(value.view(-1, *from_shape), result.view(-1, *to_shape), strict=True):
                    run(one, out)
        return result.mul_(self._scale)


def check_coils(value: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raise unless ``value`` is complex, of ``shape`` or with exactly one leading coil axis."""
    check_tensor(value, name)
    if value.ndim not in (len(shape), len(shape) + 1) or tuple(value.shape[value.ndim - len(shape) :]) != shape:
        axes = "sample" if len(shape) == 1 else "z, y, x"
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected ({axes}) = {shape}, or the same with one coil axis in "
            f"front, (coil, {axes})."
        )
    check_complex(value, name)


def check_trajectory(trajectory: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Raise unless ``trajectory`` is real, finite, (sample, 3) and within -n/2..n/2 of ``image_shape``."""
    check_tensor(trajectory, "trajectory")
    if trajectory.ndim != 2 or trajectory.shape[1] != 3:
        raise ValueError(f"trajectory has shape {tuple(trajectory.shape)}, expected (sample, 3), columns kz ky kx.")
    if not trajectory.is_floating_point():
        raise TypeError(f"trajectory has dtype {trajectory.dtype}, expected torch.float32 or torch.float64.")
    check_finite(trajectory, "trajectory")
