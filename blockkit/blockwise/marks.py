"""Follow what comes from a network's input, also through operations and numbers that cannot hold a NaN.

A probe marks voxels with NaN and looks where NaN comes out. A comparison gives a boolean, ``argmin`` an integer,
``sign`` a 0: there NaN would end, although the answer depends on the marked voxel. So a mask goes along with such
numbers, and where they meet floating-point numbers again, the mask becomes NaN.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from blockkit.blockwise.trace import CUTS, VIEWS

_HIDERS = {
    "copysign", "float_power", "fmax", "fmin", "fmod", "hardshrink", "heaviside", "hypot", "masked_fill", "nan_to_num",
    "pow", "remainder", "sgn", "sign", "softshrink", "where", "xlogy",
}  # fmt: skip
_POINTWISE = {"__and__", "__or__", "__xor__", "isclose", "masked_fill"}
_COPIES = {"_to_copy", "bucketize", "clone", "copy"}
_REDUCTIONS = {
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "max", "mean", "min", "nansum", "prod", "sum",
}  # fmt: skip
_DECISIONS = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2", "unique_consecutive"}


class Marks:
    """Knows of each tensor whether it comes from the input, and where it is marked.

    Parameters
    ----------
    carry
        The run has NaN in it: carry it on where numbers cannot.
    """

    def __init__(self, *, carry: bool) -> None:
        self.carry = carry
        self._storages: Any = WeakIdKeyDictionary()
        self._masks: Any = WeakIdKeyDictionary()

    def add(self, value: Tensor) -> None:
        """Remember that ``value`` comes from the input."""
        self._storages[value.untyped_storage()] = True

    def known(self, value: Tensor) -> bool:
        """Say whether ``value`` comes from the input."""
        return value.layout == torch.strided and value.untyped_storage() in self._storages

    def of(self, value: Tensor) -> Tensor:
        """Return where ``value`` is marked, as booleans."""
        mask: Tensor | None = self._masks.get(value)
        return value.isnan() if mask is None else mask

    def before(self, op: str, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the masks of the inputs of an operation that overwrites one of them."""
        return [self.of(value) for value in inputs] if self.carry and op.endswith("_") else None

    def decides(self, op: str, inputs: Sequence[Tensor]) -> bool:
        """Say whether an operation hands numbers that come from the input to Python, or takes its shape from them."""
        taken = op in _DECISIONS or (op == "index" and any(value.dtype == torch.bool for value in inputs[1:]))
        return taken and any(map(self.known, inputs))

    def follow(self, call: "Call") -> bool:
        """Mark what an operation gave. Return whether it comes from the input."""
        created = call.op.endswith("_like") or call.op.startswith("new_")
        if created or not any(map(self.known, call.inputs)):
            return False
        for value in call.outputs:
            self.add(value)
        if self.carry:
            for i, value in enumerate(call.outputs):
                self._mark(call, i, value)
        return True

    def _mark(self, call: "Call", i: int, value: Tensor) -> None:
        holds = _holds_nan(value)
        hidden = any(known in self._masks for known in call.inputs)
        if holds and not hidden and call.op.rstrip("_") not in _HIDERS:
            return  # NaN went on by itself
        masks = call.before if call.before is not None else [self.of(known) for known in call.inputs]
        touched = self._touched(call, i, masks)
        if touched is None:
            return
        if holds:
            value.masked_fill_(touched, math.nan)
        else:
            self._masks[value] = touched

    def _touched(self, call: "Call", i: int, masks: list[Tensor]) -> Tensor | None:
        """Return which numbers of output number ``i`` depend on marked ones. None: those that are NaN."""
        op, shape = call.op.rstrip("_"), call.outputs[i].shape
        choice = {"where": 0, "masked_fill": 1, "index_put": 1}.get(op)
        if choice is not None and not self.known(call.inputs[choice]):
            return None  # a choice that is always the same
        if call.pointwise or op in _POINTWISE:
            return reduce(torch.logical_or, masks).expand(shape)
        if not any(bool(mask.any()) for mask in masks):
            return None
        if i and call.outputs[0].shape == shape and _holds_nan(call.outputs[0]):
            return call.outputs[0].isnan()  # the indices of the values before them
        if call.handler is not None:
            like_nan = torch.zeros(masks[0].shape, dtype=torch.float64, device=masks[0].device)
            return call.handler(like_nan.masked_fill(masks[0], math.nan)).isnan()
        if op in _COPIES:
            return masks[-1 if op == "copy" else 0].expand(shape)
        if op in VIEWS | CUTS:
            results = call.func(*_exchanged(call.args, iter(masks)), **call.kwargs)
            result: Tensor = results[i] if isinstance(results, list | tuple) else results
            return result
        if op in _REDUCTIONS:
            return _reduced(masks[0], *call.args[1:3], **call.kwargs).expand(shape)
        if op == "embedding":
            return masks[1].unsqueeze(-1).expand(shape)
        if op in ("index", "index_put") and len(call.args[1]) == 1:
            return masks[1].reshape(*masks[1].shape, *[1] * (len(shape) - masks[1].ndim)).expand(shape)
        if op.startswith("max_unpool"):
            return F.interpolate(masks[0].double(), shape[2:], mode="nearest") > 0
        return torch.ones(shape, dtype=torch.bool, device=masks[0].device)


class Call:
    """One operation and what it gave."""

    def __init__(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        self.func, self.args, self.kwargs, self.inputs = func, args, kwargs, inputs
        self.op: str = func.overloadpacket.__name__
        self.pointwise = torch.Tag.pointwise in func.tags
        self.before: list[Tensor] | None = None
        self.outputs: list[Tensor] = []
        self.handler: Callable[[Tensor], Tensor] | None = None


def _holds_nan(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _exchanged(tree: Any, masks: Any) -> Any:
    """Put the masks in the place of the tensors."""
    if isinstance(tree, Tensor):
        return next(masks)
    return type(tree)(_exchanged(inner, masks) for inner in tree) if isinstance(tree, list | tuple) else tree


def _reduced(mask: Tensor, dim: Any = None, keepdim: Any = False, **_: Any) -> Tensor:
    if dim is None or dim == []:
        return mask.any()
    return mask.sum(dim, keepdim=bool(keepdim)) > 0
