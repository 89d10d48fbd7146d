"""What an operator is given: trajectories, images and k-space of the right shape, type and unit, or a clear error."""

import warnings

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.checks import Shape3, check_complex, check_finite, check_tensor, shape_hint, slice_hint


def check_coils(value: Tensor, shape: tuple[int, ...], name: str, device: torch.device) -> None:
    """Raise unless ``value`` is complex, on ``device``, of ``shape`` or with exactly one coil axis in front."""
    check_tensor(value, name)
    axes = "sample" if len(shape) == 1 else "z, y, x"
    if value.ndim not in (len(shape), len(shape) + 1) or tuple(value.shape[-len(shape) :]) != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected ({axes}) = ({sizes}), or with one coil axis in front, "
            f"(coil, {axes}) = (any, {sizes})." + (shape_hint(value, shape, name) if len(shape) == 3 else "")
        )
    check_complex(value, name)
    if value.device.type != device.type:
        raise ValueError(f"{name} is on {value.device}, but the operator is on {device}. Write A.to({name}.device).")


def check_trajectory(trajectory: Tensor, image_shape: Shape3) -> Tensor:
    """Return a detached copy of ``trajectory`` if it is real, finite, (sample, 3) and within -n/2..n/2, or raise."""
    check_tensor(trajectory, "trajectory")
    if trajectory.ndim != 2 or trajectory.shape[1] != 3 or trajectory.shape[0] == 0:
        hint = " Write trajectory.T." if trajectory.ndim == 2 and trajectory.shape[0] == 3 else ""
        hint = hint or slice_hint(trajectory.shape)
        hint = " Write trajectory.reshape(-1, 3)." if trajectory.ndim > 2 and trajectory.shape[-1] == 3 else hint
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}, expected (sample, 3), columns kz ky kx, at least one row."
            + hint
        )
    if trajectory.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"trajectory has dtype {trajectory.dtype}, expected torch.float32 or torch.float64. "
            "Write trajectory.float()."
        )
    if not isinstance(trajectory, FakeTensor):
        check_finite(trajectory, "trajectory")
        _check_extent(trajectory, image_shape)
    return trajectory.detach().clone(memory_format=torch.contiguous_format)


def _check_extent(trajectory: Tensor, image_shape: Shape3) -> None:
    largest = [float(k) for k in trajectory.abs().amax(dim=0)]
    for axis, (k, n) in enumerate(zip(largest, image_shape, strict=True)):
        if k > n / 2 * 1.001:
            raise ValueError(
                f"trajectory reaches |k{'zyx'[axis]}| = {k:g} cycles/FOV, expected at most n/2 = {n / 2:g} for "
                f"image_shape {image_shape}. Are the columns kz ky kx? Else take a finer image_shape, or keep only "
                "the samples inside."
            )
    thick = [k for k, n in zip(largest, image_shape, strict=True) if n >= 16]
    if not thick:
        return
    if 0.45 < max(largest) <= 0.5001 and len(trajectory) >= 16:
        raise ValueError(
            f"trajectory stays within {max(largest):g}: that looks like cycles per voxel, expected cycles/FOV in "
            f"-n/2..n/2. Write trajectory * torch.tensor({list(image_shape)})."
        )
    if all(3.1 < k < 3.1417 for k in thick):
        warnings.warn(
            f"trajectory reaches {max(largest):.4f} on every axis: if it is in radians per voxel, write "
            f"trajectory * torch.tensor({list(image_shape)}) / (2 * torch.pi) to have cycles/FOV.",
            stacklevel=4,
        )
