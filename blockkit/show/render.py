"""From volumes to planes of real numbers: checks, slices, parts, projections and grey windows."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import Shape3

Volume: TypeAlias = Tensor | NDArray[Any]
Part: TypeAlias = Literal["magnitude", "phase", "real", "imaginary"]
Planes3: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]

AXES = "zyx"
PARTS: tuple[Part, ...] = ("magnitude", "phase", "real", "imaginary")
MOST_COLUMNS = 8


def check_volumes(volumes: Mapping[str, Volume]) -> Shape3:
    """Return the (z, y, x) shape that all ``volumes`` share, or raise with what to type."""
    if not isinstance(volumes, Mapping):
        raise TypeError(
            f"volumes is a {type(volumes).__name__}, expected a dict of names and volumes: "
            '{"MBDL": image, "reference": reference}.'
        )
    if not 1 <= len(volumes) <= MOST_COLUMNS:
        raise ValueError(f"volumes has {len(volumes)} entries, expected 1 to {MOST_COLUMNS}, one for each column.")
    shapes = {name: _check_volume(name, volume) for name, volume in volumes.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other != shape:
            raise ValueError(
                f"volumes[{name!r}] has shape {other}, but volumes[{first!r}] has {shape}. "
                "All columns share one position, so the volumes must have one shape (z, y, x)."
            )
    return shape


def _check_volume(name: str, volume: Volume) -> Shape3:
    label = f"volumes[{name!r}]"
    if not isinstance(volume, Tensor | np.ndarray):
        raise TypeError(f"{label} is a {type(volume).__name__}, expected a torch.Tensor or a numpy array.")
    if isinstance(volume, np.ndarray) and volume.dtype.kind not in "fciub":
        raise TypeError(f"{label} has dtype {volume.dtype}, expected complex, real or whole numbers.")
    shape = tuple(int(n) for n in volume.shape)
    if len(shape) != 3:
        hint = {2: " One axis is missing: if that is z, pass volume[None].", 4: " Pass one of them: volume[0]."}
        raise ValueError(f"{label} has shape {shape}, expected (z, y, x).{hint.get(len(shape), '')}")
    if 0 in shape:
        raise ValueError(f"{label} has shape {shape}: there is no voxel in it.")
    return shape[0], shape[1], shape[2]


def check_part(part: str) -> None:
    """Raise unless ``part`` is magnitude, phase, real or imaginary."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}.")


def check_axis(axis: str) -> int:
    """Return the number of the axis named ``axis``: 0 for z, 1 for y, 2 for x."""
    if not isinstance(axis, str) or len(axis) != 1 or axis not in AXES:
        raise ValueError(f"axis is {axis!r}, expected 'z', 'y' or 'x'.")
    return AXES.index(axis)


def check_index(index: int | Sequence[int] | None, shape: Shape3, axes: str = AXES) -> Shape3:
    """Return a position (z, y, x): ``None`` is the middle, one number counts along ``axes``, three are the position."""
    middle = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    if index is None:
        return middle
    if isinstance(index, int | np.integer):
        wanted = [int(index) if name in axes else middle[i] for i, name in enumerate(AXES)]
    else:
        wanted = [int(i) for i in index]
    if len(wanted) != 3:
        raise ValueError(f"index has {len(wanted)} numbers, expected one, or three: (z, y, x).")
    position = [i + n if i < 0 else i for i, n in zip(wanted, shape, strict=True)]
    for name, i, n, given in zip(AXES, position, shape, wanted, strict=True):
        if not 0 <= i < n:
            raise ValueError(f"index along {name} is {given}, expected 0 to {n - 1}.")
    return position[0], position[1], position[2]


def check_voxel_size(voxel_size: float | Sequence[float] | None) -> tuple[float, float, float]:
    """Return (z, y, x) in mm; ``None`` stands for isotropic voxels of 1 mm."""
    sizes = (voxel_size,) * 3 if isinstance(voxel_size, int | float) else voxel_size
    if sizes is None:
        return 1.0, 1.0, 1.0
    numbers = [float(s) for s in sizes]
    if len(numbers) != 3 or not all(np.isfinite(s) and s > 0 for s in numbers):
        raise ValueError(f"voxel_size is {voxel_size!r}, expected mm along (z, y, x), such as (1.25, 1.25, 1.25).")
    return numbers[0], numbers[1], numbers[2]


def is_error(name: str) -> bool:
    """Tell whether a column is an error map, by its name: it gets its own window and colors."""
    return name.strip().lower().startswith("error")


def take_plane(volume: Volume, axis: int, index: int) -> NDArray[Any]:
    """Return one plane as a numpy array, the slower of its two axes first; the volume is never copied whole."""
    if isinstance(volume, Tensor):
        return _to_numpy(volume.select(axis, index))
    plane: NDArray[Any] = volume[(slice(None),) * axis + (index,)]
    return plane


def _to_numpy(values: Tensor) -> NDArray[Any]:
    values = values.detach().resolve_conj().resolve_neg().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    elif values.dtype == torch.complex32:
        values = values.to(torch.complex64)
    plane: NDArray[Any] = values.numpy()
    return plane


def take_part(values: NDArray[Any], part: Part) -> NDArray[np.float64]:
    """Return magnitude, phase in radians, real or imaginary part of ``values`` as float64."""
    wide = values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
    if part == "phase":
        phase = np.angle(wide)
        return np.asarray(np.where(np.isfinite(wide), phase, np.nan), dtype=np.float64)
    chosen = {"magnitude": abs(wide), "real": wide.real, "imaginary": wide.imag}[part]
    return np.asarray(chosen, dtype=np.float64)


def magnitudes(values: NDArray[Any]) -> NDArray[Any]:
    """Return magnitudes at the precision of ``values``; float64 for whole numbers."""
    if values.dtype.kind == "c" or values.dtype in (np.float32, np.float64):
        return np.asarray(np.abs(values))
    return take_part(values, "magnitude")


def project(volume: Volume, axis: int, first: int, last: int) -> NDArray[Any]:
    """Return the largest magnitude of the voxels ``first`` to ``last - 1`` along ``axis``; NaN only where all are."""
    if isinstance(volume, Tensor):
        slab = _to_numpy(volume.narrow(axis, first, last - first))
    else:
        slab = volume[(slice(None),) * axis + (slice(first, last),)]
    return np.asarray(np.fmax.reduce(magnitudes(slab), axis=axis))


def project_whole(volume: Volume) -> Planes3:
    """Return the largest magnitude along z, along y and along x, in one pass over the planes of ``volume``."""
    along_z = magnitudes(take_plane(volume, 0, 0)).copy()
    along_y, along_x = [], []
    for z in range(volume.shape[0]):
        plane = magnitudes(take_plane(volume, 0, z))
        np.fmax(along_z, plane, out=along_z)
        along_y.append(np.fmax.reduce(plane, axis=0))
        along_x.append(np.fmax.reduce(plane, axis=1))
    return along_z, np.stack(along_y), np.stack(along_x)


def brightest(volume: Volume, *, percentile: float = 99.9) -> float:
    """Return the magnitude below which ``percentile`` of the finite voxels lie, at least a tenth of the largest.

    The largest is read plane by plane, the percentile from at most 64 planes: no copy of the volume is made.
    """
    largest, some = 0.0, []
    step = -(-volume.shape[0] // 64)
    for z in range(volume.shape[0]):
        magnitude = take_part(take_plane(volume, 0, z), "magnitude")
        finite = magnitude[np.isfinite(magnitude)]
        largest = max(largest, float(finite.max(initial=0)))
        if z % step == 0:
            some.append(finite)
    values = np.concatenate(some)
    return max(float(np.percentile(values, percentile)) if values.size else 0.0, 0.1 * largest)


def all_brightest(volumes: Mapping[str, Volume]) -> dict[str, float]:
    """Return :func:`brightest` of each volume."""
    return {name: brightest(volume) for name, volume in volumes.items()}


def windows(tops: Mapping[str, float], part: Part = "magnitude") -> dict[str, tuple[float, float]]:
    """Return the window (black, white) of each volume from its :func:`brightest`: one for images, one for error maps.

    The reference, if there is a volume of this name, sets the window of the images.
    """
    check_part(part)
    images = [top for name, top in tops.items() if not is_error(name)]
    errors = [top for name, top in tops.items() if is_error(name)]
    image_top = tops.get("reference", 0.0) or max(images, default=0.0) or 1.0
    error_top = max(errors, default=0.0) or 1.0
    chosen = {}
    for name in tops:
        top = error_top if is_error(name) else image_top
        signed = (-np.pi, np.pi) if part == "phase" else (-top, top)
        chosen[name] = (0.0, top) if part == "magnitude" or is_error(name) else signed
    return chosen
