"""Kernels in 8 bits: whole numbers from -127 to 127 and, for each pair of channels, the step between them."""

import torch
from torch import Tensor

from blockkit.checks import check_finite

_MOST = 127
_STEP = ".step"  # after the name of a kernel, the name of its steps


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with kernels, real and of two axes or more, in 8 bits; the others are as they were."""
    result = {}
    for name, value in tensors.items():
        result[name] = value
        if value.is_floating_point() and value.ndim > 1:
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
    """Return the shape of the steps: (output, input) of a convolution, (output,) of a matrix."""
    return kernel.shape[: 2 if kernel.ndim > 2 else 1]


def _along(step: Tensor, kernel: Tensor) -> Tensor:
    return step.reshape(*step.shape, *[1] * (kernel.ndim - step.ndim))
