"""NUFFT engines, and the only file that names a NUFFT library: each one sums one coil's samples, unscaled."""

import ctypes
import importlib
import importlib.util
import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes as _uncounted

from blockkit.checks import Shape3

_SAFETY = 6.0  # asked of the library beyond the stated tolerance: a bright voxel in a corner is off by 5 x what it says
_SINGLE_FLOOR = 1e-6
_TABLE_FLOOR = 2e-5


class Engine(ABC):
    r"""Sum :math:`\sum_r x_r e^{-2\pi i\,k_s \cdot r/n}`, and its adjoint, for one coil on one trajectory.

    An engine holds plans and tables, so an operator makes it on first use and drops it when copied.
    """

    name: str
    outside_torch: bool  # whether the library takes its workspace where torch does not see it

    def __init__(self, trajectory: Tensor, image_shape: Shape3, tolerance: float) -> None:
        self.trajectory, self.image_shape, self.tolerance = trajectory, image_shape, tolerance
        self._plans: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` (z, y, x) into ``kspace`` (sample,)."""

    @abstractmethod
    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` (sample,) into ``image`` (z, y, x)."""

    def _cached(self, key: tuple[Any, ...], make: Callable[..., Any]) -> Any:
        """Return the plan for ``key``, whose first entries name a use: the last plan of each use is kept."""
        if key not in self._plans:
            self._plans = {old: plan for old, plan in self._plans.items() if old[:2] != key[:2]}
            self._plans[key] = make(*key)
        return self._plans[key]


class Finufft(Engine):
    """finufft on the CPU: one plan for each precision, made for the current number of threads, runs both ways.

    On several threads the last bits of its adjoint differ from run to run, so it takes one thread while
    ``torch.use_deterministic_algorithms`` is in force.
    """

    name, outside_torch = "finufft", True

    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` (z, y, x) into ``kspace`` (sample,)."""
        with self._lock:
            self._plan(image.dtype).execute(image.numpy(), out=kspace.numpy())

    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` (sample,) into ``image`` (z, y, x)."""
        with self._lock:
            self._plan(image.dtype).execute_adjoint(kspace.numpy(), out=image.numpy())

    def _plan(self, dtype: torch.dtype) -> Any:
        n_threads = 1 if torch.are_deterministic_algorithms_enabled() else torch.get_num_threads()
        return self._cached(("both", dtype, n_threads), self._make)

    def _make(self, _: str, dtype: torch.dtype, n_threads: int) -> Any:
        settings = _settings(dtype, self.tolerance)
        plan = _load("finufft").Plan(2, self.image_shape, isign=-1, nthreads=n_threads, **settings)
        with _uncounted():  # each call declares them, with the rest of the plan
            columns = _radians(self.trajectory, self.image_shape, dtype)
        plan.setpts(*(column.numpy() for column in columns))
        return plan


class Cufinufft(Engine):
    """cufinufft on a CUDA device: two plans for each precision, since it has no adjoint run of one plan."""

    name, outside_torch = "cufinufft", True

    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` (z, y, x) into ``kspace`` (sample,)."""
        with self._lock:
            self._plan(2, image).execute(image, out=kspace)

    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` (sample,) into ``image`` (z, y, x)."""
        with self._lock:
            self._plan(1, image).execute(kspace, out=image)

    def _plan(self, kind: int, image: Tensor) -> Any:
        stream = torch.cuda.current_stream(image.device).cuda_stream
        return self._cached((kind, image.dtype, image.device.index, stream), self._make)

    def _make(self, kind: int, dtype: torch.dtype, device: int, stream: int) -> Any:
        settings = _settings(dtype, self.tolerance)
        isign = -1 if kind == 2 else 1
        plan = _load("cufinufft").Plan(
            kind, self.image_shape, isign=isign, gpu_device_id=device, gpu_stream=stream, **settings
        )
        plan.setpts(*_radians(self.trajectory, self.image_shape, dtype))
        return plan


class Torchkbnufft(Engine):
    """torchkbnufft on any device: slow and lean on requirements; its table is as fine as the tolerance asks."""

    name, outside_torch = "torchkbnufft", False

    def sample(self, image: Tensor, kspace: Tensor) -> None:
        """Write the samples of ``image`` (z, y, x) into ``kspace`` (sample,)."""
        module, radians = self._cached(("KbNufft", image.dtype), self._make)
        kspace.copy_(module(image.reshape(1, 1, *module.im_size), radians)[0, 0])

    def spread(self, kspace: Tensor, image: Tensor) -> None:
        """Write the adjoint of ``kspace`` (sample,) into ``image`` (z, y, x)."""
        module, radians = self._cached(("KbNufftAdjoint", image.dtype), self._make)
        image.copy_(module(kspace[None, None], radians).view(image.shape))

    def _make(self, kind: str, dtype: torch.dtype) -> tuple[Any, Tensor]:
        radians = torch.stack(_radians(self.trajectory, self.image_shape, dtype))
        thick = [axis for axis, n in enumerate(self.image_shape) if n > 1] or [0]
        sizes = [self.image_shape[axis] for axis in thick]
        module = getattr(_load("torchkbnufft"), kind)(
            sizes,
            grid_size=_table_grid(sizes),
            numpoints=6 if self.tolerance >= 1e-4 else 7,
            table_oversamp=2 ** math.ceil(math.log2(2 / self.tolerance)),
            dtype=dtype,
            device=self.trajectory.device,
        )
        return module, radians[thick]


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Finufft, Cufinufft, Torchkbnufft)}


def choose_engine(name: str, device: torch.device, tolerance: float) -> type[Engine]:
    """Return the engine called ``name``, or for "auto" the fastest that is there, or raise saying what to do."""
    if name not in ("auto", *ENGINES):
        raise ValueError(f"engine is {name!r}, expected 'auto' or one of {sorted(ENGINES)}.")
    on_cuda = device.type == "cuda"
    if name == "auto":
        name = "finufft" if not on_cuda else "cufinufft" if _is_importable("cufinufft") else "torchkbnufft"
    if name == "finufft" and on_cuda:
        raise ValueError("engine 'finufft' runs on the CPU, but the trajectory is on a CUDA device. Use engine='auto'.")
    if name == "cufinufft" and not on_cuda:
        raise ValueError(f"engine 'cufinufft' needs a CUDA device, but the trajectory is on {device}. Use .to('cuda').")
    if name == "torchkbnufft" and tolerance < _TABLE_FLOOR:
        raise ValueError(f"tolerance is {tolerance:g}, but torchkbnufft reaches {_TABLE_FLOOR:g}. Use 'finufft'.")
    if not _is_importable(name):
        raise ImportError(f"NUFFT engine {name!r} cannot be imported here. Write: pip install {name}")
    return ENGINES[name]


def finest_tolerance(engine: type[Engine]) -> float:
    """Return the smallest tolerance that ``engine`` reaches in complex128."""
    return _TABLE_FLOOR if engine is Torchkbnufft else 1e-12


def oversampling(dtype: torch.dtype, tolerance: float) -> float:
    """Return the fine grid's length over the image's: 1.25 while it reaches the tolerance, else 2 (8 x the image).

    At 1.25 the correction at the image's edge is large, and so is the rounding that it lifts there: in single precision
    the adjoint of a real scan's k-space was off by 5e-4, in double precision the dot test by more than 1e-13.
    """
    return 1.25 if tolerance >= (1e-3 if dtype == torch.complex64 else 2e-6) else 2.0


def workspace_bytes(
    engine: type[Engine], image_shape: Shape3, n_samples: int, dtype: torch.dtype, tolerance: float, *, adjoint: bool
) -> int:
    """Return the bytes that one call takes for one coil: fine grid, coordinates and the order of the samples.

    The adjoint spreads into copies of parts of the fine grid first: together at most about as large again.
    """
    if engine is Torchkbnufft:
        grids, columns, images = (2, 16, 2) if adjoint else (2, 12, 0)
        grid = grids * math.prod(_table_grid(image_shape)) + images * math.prod(image_shape)
        return (grid + columns * n_samples) * dtype.itemsize
    factor = oversampling(dtype, tolerance)
    width = math.ceil(-math.log10(_asked(dtype, tolerance)) * (1 if factor == 2 else 1.65)) + 2
    grid = math.prod(_next_smooth(max(math.ceil(factor * n), 2 * width)) for n in image_shape)
    return grid * dtype.itemsize * (2 if adjoint else 1) + n_samples * (3 * dtype.itemsize // 2 + 8)


def _settings(dtype: torch.dtype, tolerance: float) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    return {"eps": _asked(dtype, tolerance), "upsampfac": oversampling(dtype, tolerance), "dtype": name}


def _asked(dtype: torch.dtype, tolerance: float) -> float:
    return max(tolerance / _SAFETY, _SINGLE_FLOOR if dtype == torch.complex64 else 0.0)


def _radians(trajectory: Tensor, image_shape: Shape3, dtype: torch.dtype) -> list[Tensor]:
    """Return three contiguous columns in radians per voxel: the libraries copy, and warn, if they are views."""
    sizes = torch.tensor(image_shape, dtype=torch.float64, device=trajectory.device)
    radians = (trajectory.double() * (2 * torch.pi / sizes)).to(dtype.to_real())
    return [column.contiguous() for column in radians.unbind(dim=1)]


def _table_grid(sizes: Sequence[int]) -> list[int]:
    """Return twice the sizes; an axis shorter than the table's width gets one longer than that."""
    return [max(2 * n, 8) for n in sizes if n > 1] or [8]


def _next_smooth(n: int) -> int:
    """Return the next even number from ``n`` on whose only prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


def _is_importable(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    try:
        _load(name)
    except (ImportError, OSError):
        return False
    return True


def _load(name: str) -> Any:
    """Import a NUFFT library on first use, keeping to itself what the import warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what else could be installed, and of what the library itself uses
        if name == "cufinufft":
            _preload_cuda12()
        return importlib.import_module(name)


def _preload_cuda12() -> None:
    """Open the CUDA 12 libraries that cufinufft links, where pip put them: the loader would not find them."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for pattern in (
            "cuda_runtime/lib/libcudart.so.12",
            "nvjitlink/lib/libnvJitLink.so.12",
            "cufft/lib/libcufft.so.11",
        ):
            for library in Path(folder).glob(pattern):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
