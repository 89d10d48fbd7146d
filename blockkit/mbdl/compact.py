"""Kernels in 8 bits: whole numbers from -127 to 127, and the step between them for each pair of channels."""

import torch
from torch import Tensor

from blockkit.checks import check_finite

_MOST = 127
_STEP = ".step"  # after the name of a kernel, the name of its steps
_FEWEST = 8  # weights to a pair for which a step of its own is worth its 32 bits


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with kernels, real and of two axes or more, in 8 bits; the others are as they were."""
    result = {}
    for name, value in tensors.items():
        result[name] = value
        if value.is_floating_point() and value.ndim > 1 and value.numel():
            check_finite(value, name)
            largest = value.double().abs().reshape(*_pairs(value), -1).amax(dim=-1)
            step = torch.where(largest > 0, largest / _MOST, 1.0)
            result[name] = (value.double() / _along(step, value)).round().to(torch.int8)
            result[name + _STEP] = step.float()
    return result


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`packed`: kernels are float32 again, each at most half a step from what it was."""
    steps = {
        name: tensors[name + _STEP]
        for name, value in tensors.items()
        if value.dtype == torch.int8 and name + _STEP in tensors
    }
    result = {name: value for name, value in tensors.items() if name.removesuffix(_STEP) not in steps or name in steps}
    for name, step in steps.items():
        expected = _pairs(tensors[name])
        if step.shape != expected:
            raise ValueError(f"{name} has steps of shape {tuple(step.shape)}, expected {tuple(expected)}.")
        result[name] = tensors[name] * _along(step, tensors[name])
    return result


def _pairs(kernel: Tensor) -> torch.Size:
    """Return the shape of the steps: (output, input), or (output,) where a pair has few weights."""
    return kernel.shape[: 2 if kernel.shape[2:].numel() >= _FEWEST else 1]


def _along(step: Tensor, kernel: Tensor) -> Tensor:
    return step.reshape(*step.shape, *[1] * (kernel.ndim - step.ndim))
