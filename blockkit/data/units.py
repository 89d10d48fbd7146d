"""What a file's trajectory means: which column is which axis, in which unit, about which center.

Inside the package a trajectory is ``(sample, 3)``, columns kz ky kx, in cycles per field of view. Files differ, and few
say how: BART has kx ky kz in cycles/FOV, others cycles or radians per voxel. What can be seen from the numbers is
named in the error, with what to type; nothing is converted on a guess.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import Shape3

UNITS = ("cycles/FOV", "cycles/voxel", "radians/voxel")
_NAMES = ("kz", "ky", "kx")


def standard_trajectory(
    values: NDArray[np.floating], columns: Sequence[str], image_shape: Shape3, unit: str | None = None
) -> Tensor:
    r"""Return a file's trajectory with columns kz ky kx in cycles/FOV, or raise where the numbers do not look so.

    Parameters
    ----------
    values
        Real, shape ``(sample, column)``.
    columns
        What each column is: ``"kx"``, ``"ky"``, ``"kz"``, or ``"-"`` for one that is no axis, such as density weights.
        An axis that is not there gets k = 0: one slice.
    image_shape
        ``(z, y, x)`` of the image that is wanted over the field of view.
    unit
        That of ``values``: ``"cycles/FOV"``, ``"cycles/voxel"`` (-1/2 to 1/2) or ``"radians/voxel"`` (:math:`-\pi` to
        :math:`\pi`), for a voxel of ``image_shape``. None takes cycles/FOV if the numbers look like it, or raises.

    Returns
    -------
    Tensor
        Float32, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV.

    Raises
    ------
    ValueError
        If columns or unit are not one of these, a number is not finite, samples lie outside -n/2..n/2, or the unit is
        not given and they fill too little of it; the message says what the numbers look like.
    """
    check_columns(columns, values.shape[1])
    check_unit(unit)
    k = np.zeros((len(values), 3))
    for column, name in enumerate(columns[: values.shape[1]]):
        if name != "-":
            k[:, _NAMES.index(name)] = values[:, column]
    n_bad = int((~np.isfinite(k).all(axis=1)).sum())
    if n_bad:
        raise ValueError(f"trajectory is NaN or infinite at {n_bad} samples, expected finite numbers.")
    if unit is None:
        _check_fill(k, image_shape)
    else:
        k *= cycles_in(unit, image_shape)
    _check_inside(k, columns, image_shape)
    return torch.from_numpy(k.astype(np.float32))


def cycles_in(unit: str, image_shape: Shape3) -> NDArray[np.floating]:
    """Return the cycles/FOV of one of ``unit`` along z, y and x."""
    sizes = np.array(image_shape, np.float64)
    return {"cycles/FOV": np.ones(3), "cycles/voxel": sizes, "radians/voxel": sizes / (2 * math.pi)}[unit]


def check_unit(unit: str | None) -> None:
    """Raise unless ``unit`` is None or one that is known."""
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unit is {unit!r}, expected one of {', '.join(map(repr, UNITS))}.")


def check_columns(columns: Sequence[str], n_columns: int) -> None:
    """Raise unless ``columns`` names ``n_columns`` columns by kx, ky, kz, each at most once, or ``-``."""
    axes = [name for name in columns if name != "-"]
    if not axes or set(axes) - set(_NAMES) or len(set(axes)) < len(axes):
        raise ValueError(
            f"the columns of the trajectory are named {' '.join(columns)!r}, expected kx, ky and kz in the file's "
            "order, such as 'kx ky kz', and - for a column that is no axis."
        )
    if len(columns) != n_columns and (len(columns), n_columns) != (3, 2):
        raise ValueError(
            f"trajectory has {n_columns} columns, and {len(columns)} are named: {' '.join(columns)!r}. Name each of "
            "them, and write - for one that is no axis, such as density weights: 'kx ky -'."
        )


def smallest_shape(k: NDArray[np.floating], unit: str | None) -> Shape3:
    """Return the smallest even image shape (z, y, x) that holds samples (kz, ky, kx) in cycles/FOV, or raise."""
    largest = np.abs(k).max(axis=0, initial=0)
    if unit not in (None, "cycles/FOV"):
        raise ValueError(f"a trajectory in {unit} does not tell the image's size. Add image_shape=(z, y, x).")
    if not 1.01 < float(largest.max()) < 2**15 or looks_like(float(largest.max())):
        seen = looks_like(float(largest.max())) or "no number of cycles per field of view"
        raise ValueError(
            f"trajectory reaches {float(largest.max()):.4g}: that looks like {seen}, and does not tell the image's "
            "size. Add image_shape=(z, y, x) and the unit, one of " + ", ".join(UNITS) + "."
        )
    z, y, x = (2 * math.ceil(float(a) / 1.001) if a > 1e-3 else 1 for a in largest)
    return z, y, x


def looks_like(largest: float) -> str | None:
    """Name the unit whose full range ends at ``largest``, if it is not that of cycles per field of view."""
    if 0.35 < largest < 0.51:
        return "cycles/voxel"
    return "radians/voxel" if 2.8 < largest < 3.15 else None


def _check_fill(k: NDArray[np.floating], image_shape: Shape3) -> None:
    """Raise if samples fill so little of -n/2..n/2 that they are in another unit."""
    largest = np.abs(k).max(axis=0, initial=0)
    fill = max((2 * float(a) / n for a, n in zip(largest, image_shape, strict=True) if n > 1), default=1.0)
    top, half = float(largest.max()), max(image_shape) / 2
    seen = looks_like(top)
    if fill >= (0.6 if seen else 0.25) or half <= 1 or len(k) < 2:
        return
    guess = f"That looks like {seen}: write unit={seen!r}." if seen else "Which unit is that? Write unit=..., one of"
    raise ValueError(
        f"trajectory reaches {top:.4g}, expected cycles/FOV up to n/2 = {half:g} for image_shape {image_shape}. {guess}"
        + ("" if seen else f" {', '.join(UNITS)}.")
        + " If only the center was sampled, in cycles/FOV, write unit='cycles/FOV'."
    )


def _check_inside(k: NDArray[np.floating], columns: Sequence[str], image_shape: Shape3) -> None:
    """Raise if a sample lies outside -n/2..n/2, saying what explains it."""
    low, high = k.min(axis=0, initial=0), k.max(axis=0, initial=0)
    largest, half = np.maximum(-low, high), np.array(image_shape) / 2
    thin = np.array(image_shape) == 1
    outside = largest > np.where(thin, 1e-3, half * 1.001)
    if not outside.any():
        k[:, thin] = 0
        return
    axis = int(np.argmax(outside))
    raise ValueError(
        f"trajectory reaches |{_NAMES[axis]}| = {float(largest[axis]):.4g} cycles/FOV, expected at most "
        f"{0 if thin[axis] else half[axis]:g} for image_shape {image_shape}. "
        + _explain(low, high, columns, image_shape, axis)
    )


def _explain(
    low: NDArray[np.floating], high: NDArray[np.floating], columns: Sequence[str], image_shape: Shape3, axis: int
) -> str:
    largest, half = np.maximum(-low, high), np.array(image_shape) / 2
    named = [name for name in columns if name != "-"]
    swapped = " ".join(reversed(named))
    if len(named) == 3 and (largest[::-1] <= np.maximum(half * 1.001, 1e-3)).all():
        return f"It would fit with the columns the other way round: name them {swapped!r}."
    if image_shape[axis] == 1:
        return (
            f"The image is one voxel thick there, so {_NAMES[axis]} must be 0. If that column holds density weights, "
            "name it -, as in 'kx ky -'; if the scan is 3D, give another image_shape."
        )
    if low[axis] >= 0 and high[axis] <= 2 * half[axis] * 1.001:
        return (
            f"It starts at {low[axis]:.4g}: the center of k-space must be at 0, so subtract {half[axis]:g} first "
            "(trajectory=...)."
        )
    seen = looks_like(float(largest.max()))
    if seen:
        return f"That looks like {seen}: write unit={seen!r}."
    fits = tuple(2 * math.ceil(float(a) / 1.001) if a > 1e-3 else 1 for a in largest)
    return (
        f"In cycles/FOV it needs image_shape {fits}. If it is in 1/m, multiply it by the field of view in m first "
        "(trajectory=...)."
    )
