"""What a network sees: how far around a voxel it looks, and by how much it may be shifted.

:func:`reach` copies the network, gives the copy positive weights, and runs it on small volumes: :mod:`.questions` says
what it asks there, :mod:`~blockkit.blockwise.probe` how it watches, :mod:`.blame` what it answers when a network sees
the whole volume.
"""

import copy
import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from blockkit.blockwise.questions import Prober
from blockkit.checks import Shape3


@dataclass(frozen=True)
class Reach:
    """How far a network sees, per axis (z, y, x), in voxels of its input."""

    radius: Shape3
    """The largest distance between an output voxel and an input voxel that it depends on, to either side."""
    stride: Shape3
    """The network commutes with a shift by this many voxels, and in general by no fewer."""
    halo: Shape3
    """The least halo that is exact for windows that start at multiples of the stride: itself a multiple of it."""
    layers: tuple[str, ...]
    """The layers that widen the reach, in the order they run."""

    def explain(self) -> str:
        """Return the figures, and the layers that make them, as text."""
        head = f"radius {self.radius}, stride {self.stride}, halo {self.halo} voxels (z, y, x)"
        return "\n  ".join((head, *self.layers))


@dataclass(frozen=True)
class _Known:
    """An answer, and what it holds for."""

    signature: object
    counters: frozenset[str]
    """Settings that the network's own forward changes."""
    n_channels: int
    reach: Reach


_cache: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
_WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def reach(network: nn.Module, *, n_channels: int | None = None) -> Reach:
    """Find how far ``network`` sees, or say which layer makes that the whole volume.

    The network runs as a copy with other weights, on a CPU and without a graph: nothing of the caller's is changed.
    The answer is kept until the network's layers, their settings, shapes, hooks or training flags change.

    Parameters
    ----------
    network
        Takes ``(window, channel, z, y, x)``, gives ``(window, channel', z, y, x)`` of the same spatial shape.
    n_channels
        Channels of its input. None: what its first convolution takes, or what works.

    Returns
    -------
    Reach
        ``radius``, ``stride`` and ``halo`` in voxels (z, y, x).

    Raises
    ------
    TypeError
        If ``network`` is not an ``nn.Module``.
    ValueError
        If block by block can never equal the whole volume: a layer takes statistics over space, pools all of it,
        attends to all of it, wraps around it, or depends on the place in it. The message names the layer.

    Examples
    --------
    >>> seen = bk.reach(bk.ResidualCNN(n_channels=8, n_layers=5, downsample=2))
    >>> seen.radius, seen.stride
    ((11, 11, 11), (2, 2, 2))
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is a {type(network).__name__}, expected a torch.nn.Module.")
    network = getattr(network, "_orig_mod", network)
    known = _cache.get(network)
    if known and n_channels in (None, known.n_channels) and known.signature == _signature(network, known.counters):
        return known.reach
    with _disable_current_modes(), warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore")  # of a copy that is asked in unusual ways: the run itself warns
        twin = _twin(network)
        before = _settings(twin)
        prober = Prober(twin, n_channels)
        z, y, x = prober.axes()
    after = _settings(twin)
    result = Reach(
        (z.radius, y.radius, x.radius),
        (z.stride, y.stride, x.stride),
        (z.halo, y.halo, x.halo),
        tuple(dict.fromkeys((*z.layers, *y.layers, *x.layers))),
    )
    counters = frozenset(name for name in before | after if before.get(name) != after.get(name))
    _cache[network] = _Known(_signature(network, counters), counters, prober.n_channels, result)
    return result


def signature(network: nn.Module) -> object:
    """Return what makes the network the one that :func:`reach` saw, to be compared; not the numbers in its tensors."""
    known = _cache.get(getattr(network, "_orig_mod", network))
    return _signature(network, known.counters if known else frozenset())


def _twin(network: nn.Module) -> nn.Module:
    """Copy the network to the CPU in double precision, with positive weights: no zero hides what it sees."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError("The network is compiled by torch.jit, so it cannot be watched. Pass the module it came from.")
    if any(is_lazy(value) for value in (*network.parameters(), *network.buffers())):
        raise ValueError("The network has lazy layers that have not run yet. Run it once, on a small volume.")
    stand_ins: dict[int, object] = {}
    for module in network.modules():
        weight = module._parameters.get("weight") if isinstance(module, _ConvNd) else None
        if weight is not None:  # the probe looks at its shape alone: one number, expanded, takes no memory
            one = torch.ones((), dtype=_wide(weight.dtype), device="cpu")
            stand_ins[id(weight)] = nn.Parameter(one.expand(weight.shape))
    for value in (*network.parameters(), *network.buffers()):
        if (value.is_meta or isinstance(value, FakeTensor)) and id(value) not in stand_ins:
            ones = torch.ones(value.shape, dtype=_wide(value.dtype), device="cpu")
            stand_ins[id(value)] = (
                nn.Parameter(ones, ones.is_floating_point()) if isinstance(value, nn.Parameter) else ones
            )
    try:
        twin: nn.Module = copy.deepcopy(network, stand_ins)
        twin._apply(lambda value: value.to("cpu", _wide(value.dtype)))  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(
            f"The network cannot be copied to be probed: {error}. Remove what copy.deepcopy cannot copy. "
            "In place of torch.nn.utils.weight_norm and spectral_norm, use those in torch.nn.utils.parametrizations; "
            "after pruning, call torch.nn.utils.prune.remove."
        ) from error
    generator = torch.Generator("cpu").manual_seed(0)
    for parameter in twin.parameters():
        data = torch.view_as_real(parameter.data) if parameter.is_complex() else parameter.data
        if data.is_floating_point() and data.numel() and 0 not in parameter.stride():
            scale = 1 / parameter[0].numel() if parameter.ndim > 1 else 1.0
            data.uniform_(0.7 * scale, 1.3 * scale, generator=generator)
    return twin


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else _WIDER.get(dtype, dtype)


def _settings(network: nn.Module) -> dict[str, object]:
    """Collect each module's own attributes, such as ``padding_mode``."""
    return {
        f"{path}.{key}": _described(value)
        for path, module in network.named_modules()
        for key, value in module.__dict__.items()
        if key not in _INTERNAL
    }


_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}


def _described(value: object) -> object:
    """Return something that stays equal as long as ``value`` stays as it is, and does not keep it alive."""
    if isinstance(value, int | float | complex | str | type(None)):
        return value
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, dict):
        return [(str(key), _described(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_described(inner) for inner in value]
    return id(value), getattr(value, "__code__", None)


def _signature(network: nn.Module, counters: frozenset[str]) -> object:
    """Return what the answer depends on; ``counters`` are settings that the network's own forward changes."""
    settings = {key: value for key, value in _settings(network).items() if key not in counters}
    return [_build(module) for module in network.modules()], settings


def _build(module: nn.Module) -> object:
    """Return a module's type, hooks, and the shapes of its tensors."""
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    shapes = [(key, None if value is None else value.shape) for key, value in tensors.items()]
    return type(module), tuple(module._forward_hooks), tuple(module._forward_pre_hooks), shapes
