"""NUFFT engines: the only file that names a NUFFT library. Each one sums one image or one readout, unscaled."""

import importlib
import importlib.util
import threading
import warnings
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor

from blockkit.checks import Shape3

ENGINES = ("finufft", "torchkbnufft", "cufinufft")
_SINGLE_FLOOR = 1e-6


class Engine(ABC):
    r"""Compute :math:`\sum_r x_r e^{-2\pi i\,k_s \cdot r/n}` and its adjoint, for one coil and one trajectory.

    An engine holds plans and lookup tables, so an operator makes it on first use and drops it when copied.
    """

    name: str
    outside_torch: bool

    @abstractmethod
    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` (z, y, x) into ``kspace`` (sample,)."""

    @abstractmethod
    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` (sample,) into ``image`` (z, y, x)."""


class Finufft(Engine):
    """finufft on the CPU: one plan per precision and thread count serves both directions."""

    name = "finufft"

    def __init__(self, trajectory: Tensor, image_shape: Shape3, tolerance: float) -> None:
        self._trajectory, self._shape, self._tolerance = trajectory, image_shape, tolerance
        self._plans: dict[tuple[torch.dtype, int], Any] = {}
        self._lock = threading.Lock()

    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` into ``kspace``."""
        with self._lock:
            self._plan(image.dtype).execute(image.numpy(), out=kspace.numpy())

    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` into ``image``."""
        with self._lock:
            self._plan(image.dtype).execute_adjoint(kspace.numpy(), out=image.numpy())

    def _plan(self, dtype: torch.dtype) -> Any:
        key = (dtype, torch.get_num_threads())
        if key not in self._plans:
            self._plans = {old: plan for old, plan in self._plans.items() if old[0] != dtype}
            self._plans[key] = self._make_plan(*key)
        return self._plans[key]

    def _make_plan(self, dtype: torch.dtype, n_threads: int) -> Any:
        finufft = _load("finufft")
        plan = finufft.Plan(
            2,
            self._shape,
            eps=_tolerance_for(dtype, self._tolerance),
            isign=-1,
            dtype=str(dtype).removeprefix("torch."),
            nthreads=n_threads,
            upsampfac=oversampling(self._tolerance),
        )
        plan.setpts(*(column.numpy() for column in _radians(self._trajectory, self._shape, dtype)))
        return plan


def make_engine(name: str, trajectory: Tensor, image_shape: Shape3, tolerance: float) -> Engine:
    """Make the engine called ``name`` for one trajectory, or raise with what to install."""
    return Finufft(trajectory, image_shape, tolerance)


def oversampling(tolerance: float) -> float:
    """Return the fine grid's size over the image's: 1.25 saves memory, 2 reaches tolerances below 1e-8."""
    return 1.25 if tolerance >= 1e-8 else 2.0


def fine_grid_bytes(image_shape: Shape3, dtype: torch.dtype, tolerance: float) -> int:
    """Return the bytes of finufft's fine grid for one coil."""
    factor = oversampling(tolerance)
    width = 16
    n_points = 1
    for n in image_shape:
        n_points *= _next_smooth(max(int(factor * n), 2 * width))
    return n_points * dtype.itemsize


def _next_smooth(n: int) -> int:
    n += n % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


def _tolerance_for(dtype: torch.dtype, tolerance: float) -> float:
    return max(tolerance, _SINGLE_FLOOR) if dtype == torch.complex64 else tolerance


def _radians(trajectory: Tensor, image_shape: Shape3, dtype: torch.dtype) -> list[Tensor]:
    sizes = torch.tensor(image_shape, dtype=torch.float64, device=trajectory.device)
    radians = (trajectory.double() * (2 * torch.pi / sizes)).to(dtype.to_real())
    return [column.contiguous() for column in radians.unbind(dim=1)]


def _load(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"The NUFFT engine {name!r} is not installed. Write: pip install {name}")
    return importlib.import_module(name)
