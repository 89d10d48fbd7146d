"""Input checks whose messages say what came, what was expected and what to type."""

import operator
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

Shape3 = tuple[int, int, int]


def check_shape3(shape: Sequence[int], name: str = "image_shape") -> Shape3:
    """Return ``shape`` as three positive integers (z, y, x), or raise."""
    try:
        sizes = tuple(int(n) for n in shape)
        whole = all(int(n) == n for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shape!r}, expected three whole numbers (z, y, x), such as (64, 64, 64).") from None
    if len(sizes) != 3:
        hint = " For a single slice, write (1, y, x)." if len(sizes) == 2 else ""
        raise ValueError(f"{name} has {len(sizes)} numbers, {sizes}, expected three: (z, y, x).{hint}")
    if not whole or min(sizes) < 1:
        raise ValueError(f"{name} is {tuple(shape)}, expected three whole numbers of at least 1.")
    return sizes[0], sizes[1], sizes[2]


def check_image(image: Tensor, image_shape: Sequence[int], name: str = "image") -> None:
    """Raise unless ``image`` is a complex tensor of exactly ``image_shape`` (z, y, x)."""
    check_tensor(image, name)
    if tuple(image.shape) != tuple(image_shape):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}, expected (z, y, x) = {tuple(image_shape)}."
            + shape_hint(image, image_shape, name)
        )
    check_complex(image, name)


def check_tensor(value: object, name: str) -> None:
    """Raise unless ``value`` is a torch tensor."""
    if not isinstance(value, Tensor):
        hint = f" Write torch.as_tensor({name})." if hasattr(value, "__array__") else ""
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor.{hint}")


def check_volume(value: Tensor, name: str) -> None:
    """Raise unless ``value`` is a complex volume ``(z, y, x)`` of any size, all finite."""
    check_tensor(value, name)
    if value.ndim != 3:
        hint = f" For one slice, pass {name}[None]." if value.ndim == 2 else ""
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected (z, y, x).{hint}")
    check_complex(value, name)
    check_finite(value, name)


def check_complex(value: Tensor, name: str) -> None:
    """Raise unless ``value`` is complex64 or complex128."""
    if value.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(
            f"{name} has dtype {value.dtype}, expected torch.complex64 or torch.complex128. "
            f"Write {name}.to(torch.complex64)."
        )


def check_finite(value: Tensor, name: str) -> None:
    """Raise if ``value`` has a NaN or an infinity, saying how many and where the first one is."""
    bad = ~torch.isfinite(value)
    n_bad = int(bad.sum())
    if n_bad:
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} has {n_bad} values that are NaN or infinite, the first at index {first}. Expected finite numbers."
        )


def check_count(value: int, name: str, least: int = 1) -> int:
    """Return ``value`` as a whole number of at least ``least``, or raise."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r}, expected a whole number of at least {least}.")
    count = operator.index(value)
    if count < least:
        raise ValueError(f"{name} is {count}, expected at least {least}.")
    return count


def check_number(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise if it is no number."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} is {value!r}, expected a number.")
    return float(value)


def shape_hint(image: Tensor, image_shape: Sequence[int], name: str) -> str:
    """Return what to write if an image lacks an axis, has one too many or has them in another order, or nothing."""
    shape, expected = tuple(image.shape), tuple(image_shape)
    if len(shape) == len(expected) - 1:
        return f" One axis is missing: if that is z, pass {name}[None]."
    if len(shape) == len(expected) + 1 and shape[0] == 1:
        return f" There is one axis too many: pass {name}[0]."
    if sorted(shape) == sorted(expected):
        return f" The axes are in another order: pass {name}.permute(...) so that z comes first."
    return ""


def slice_hint(trajectory_shape: Sequence[int]) -> str:
    """Return what to write if the trajectory is that of a slice and lacks kz, or nothing."""
    if len(trajectory_shape) != 2 or trajectory_shape[1] != 2:
        return ""
    return " If these are ky kx of one slice, write torch.nn.functional.pad(trajectory, (1, 0)): kz is 0."


def check_kspace(kspace: Tensor, trajectory: Tensor | None = None, *, name: str = "kspace") -> None:
    """Raise unless ``kspace`` is complex (coil, sample), finite, and if a trajectory is given, one row a sample."""
    check_tensor(kspace, name)
    if kspace.ndim != 2 or not all(kspace.shape):
        hint = f" For one coil, pass {name}[None]." if kspace.ndim == 1 else ""
        hint = f" Write {name}.flatten(1)." if kspace.ndim > 2 else hint
        raise ValueError(
            f"{name} has shape {tuple(kspace.shape)}, expected (coil, sample), at least one of each.{hint}"
        )
    check_complex(kspace, name)
    check_finite(kspace, name)
    if trajectory is None:
        return
    check_tensor(trajectory, "trajectory")
    if tuple(trajectory.shape) != (kspace.shape[1], 3):
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}, expected (sample, 3) = ({kspace.shape[1]}, 3), columns "
            f"kz ky kx: one row for each sample of {name}."
            + (slice_hint(trajectory.shape) or " Write trajectory.reshape(-1, 3).")
        )
    if not trajectory.is_floating_point():
        raise TypeError(f"trajectory has dtype {trajectory.dtype}, expected a real one. Write trajectory.float().")
    check_finite(trajectory, "trajectory")
    if trajectory.device != kspace.device:
        raise ValueError(
            f"trajectory is on {trajectory.device}, and {name} on {kspace.device}: expected the same device. "
            f"Write trajectory.to({name}.device)."
        )
