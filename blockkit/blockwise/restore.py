"""Undo what a trial run does to tensors, modules and optimizers that were there before it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@contextmanager
def everything_restored() -> Iterator[None]:
    """Run the ``with`` block, then put back gradients, modules, optimizers, schedulers and the random state.

    It looks at all live objects, because a function under trial may reach any of them. It puts back which tensors they
    hold, not the numbers in those tensors: the trial must not compute on real ones.
    """
    tensors, holders = _live_objects()
    grads = [(tensor, tensor.grad, tensor.requires_grad) for tensor in tensors if tensor.is_leaf]
    made = [tensor for tensor in tensors if not is_lazy(tensor)]
    data = [(tensor, tensor.detach()) for tensor in made if tensor.is_leaf]
    versions = [(tensor, tensor._version) for tensor in made if not tensor.is_inference()]
    containers: dict[int, tuple[Any, Any]] = {}
    for holder in holders:
        _containers(vars(holder), containers)
    random = torch.get_rng_state()
    cuda_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torch.clear_autocast_cache()  # of a surrounding autocast: the trial is not to see real copies of weights, ...
    try:
        yield
    finally:
        torch.clear_autocast_cache()  # ... nor what comes after it the trial's
        for place, content in containers.values():
            _put_back(place, content)
        for tensor, old in data:
            if not _same_data(tensor, old):
                tensor.data = old
        for tensor, grad, requires_grad in grads:
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        for tensor, version in versions:
            if tensor._version != version:
                torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
        torch.set_rng_state(random)
        if cuda_random:
            torch.cuda.set_rng_state_all(cuda_random)


def _same_data(tensor: Tensor, old: Tensor) -> bool:
    """Say whether ``tensor`` still lies where ``old``, an alias of what it was, lies."""
    now = tensor.detach()
    if type(now) is not type(old) or now.layout != torch.strided:
        return type(now) is type(old)
    return now.dtype == old.dtype and now.untyped_storage()._cdata == old.untyped_storage()._cdata


def _live_objects() -> tuple[list[Tensor], list[Any]]:
    """Return all tensors, and all modules, optimizers and schedulers, that Python holds."""
    tensors, holders = _with_subclasses(Tensor), _with_subclasses(nn.Module, Optimizer, LRScheduler)
    either = tensors | holders
    found = [value for value in gc.get_objects() if type(value) in either]
    return [v for v in found if type(v) in tensors], [v for v in found if type(v) in holders]


def _with_subclasses(*classes: type) -> set[type]:
    return set(classes).union(*(_with_subclasses(*kind.__subclasses__()) for kind in classes if kind.__subclasses__()))


def _containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Collect the dictionaries and lists within ``value``, each with a copy of what it holds."""
    if not isinstance(value, dict | list) or id(value) in found:
        return
    found[id(value)] = (value, value.copy())
    for inner in value.values() if isinstance(value, dict) else value:
        _containers(inner, found)


def _put_back(place: Any, content: Any) -> None:
    """Make ``place``, a dictionary or a list, hold what ``content``, its copy of old, holds."""
    if isinstance(place, list):
        if len(place) != len(content) or any(a is not b for a, b in zip(place, content, strict=True)):
            place[:] = content
    elif place.keys() != content.keys() or any(place[key] is not content[key] for key in content):
        place.clear()
        place.update(content)
