"""What must hold for blocks to give the whole volume's answer, and what is said when it does not."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _disable_current_modes

from blockkit.blockwise.reach import reach, signature
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3, check_tensor


def check_volume(network: nn.Module, x: Tensor) -> Shape3:
    """Return the shape (z, y, x) of a volume (channel, z, y, x), or raise."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network is a {type(network).__name__}, expected an nn.Module, whose parameters can be found. "
            "Put the function into the forward method of a Module."
        )
    check_tensor(x, "x")
    if x.is_complex():
        raise TypeError(
            f"x has dtype {x.dtype}, expected a real dtype. Real and imaginary part are two channels: "
            "write torch.cat([x.real, x.imag]), and torch.complex(*y.chunk(2)) to come back."
        )
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected torch.float32. Write x.to(torch.float32).")
    if x.ndim != 4 or 0 in x.shape:
        hint = " Is the channel missing? Pass x[None]. Is it one slice? Pass x[:, None]." if x.ndim == 3 else ""
        hint = " Pass one volume at a time: x[0]." if x.ndim == 5 else hint
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (channel, z, y, x), none of them 0.{hint}")
    return x.shape[1], x.shape[2], x.shape[3]


def three(value: Sequence[int] | int, name: str, least: int) -> Shape3:
    """Return three whole numbers (z, y, x) of at least ``least``; one number stands for all three."""
    sizes = tuple(value) if isinstance(value, Iterable) else (value,) * 3
    whole = all(isinstance(size, Integral) and not isinstance(size, bool) for size in sizes)
    if len(sizes) != 3 or not whole or min(sizes) < least:
        raise ValueError(
            f"{name} is {value!r}, expected three whole numbers (z, y, x), each at least {least}, or one for all three."
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def halo_and_stride(
    network: nn.Module, x_shape: Sequence[int], block: Shape3, halo: Shape3 | None, *, exact: bool
) -> tuple[Shape3, Shape3]:
    """Return the halo to use and the stride of the network, or raise (warn if not ``exact``) where blocks differ."""
    n_channels, z, y, x = x_shape
    volume_shape = (z, y, x)
    problems = [
        f"network has active dropout, {name}: blocks draw other masks than the whole volume. Write network.eval()."
        for name in _active_dropout(network)
    ]
    needed, stride = halo, (1, 1, 1)
    try:
        with _disable_current_modes():  # whoever counts memory counts the blocks, not this
            seen = reach(network, n_channels=n_channels)
        needed, stride = seen.halo, seen.stride
    except ValueError as error:
        problems.append(str(error))
    _raise_or_warn(problems, exact)
    if needed is None:
        raise ValueError("The reach of this network is not known. Say how large a halo to use: halo=8, for instance.")
    _check_divisible(volume_shape, stride)
    used = needed if halo is None else _rounded(halo, stride)
    is_cut = [b < n for b, n in zip(_rounded(block, stride), volume_shape, strict=True)]
    if any(u < h and c for u, h, c in zip(used, needed, is_cut, strict=True)):
        short = f"halo is {halo}, expected at least {needed} (z, y, x), which is how far the network reaches. "
        _raise_or_warn([f"{short}Write halo={needed}, or leave it out."], exact)
    return used, stride


@contextmanager
def precision_named(network: nn.Module, x: Tensor) -> Iterator[None]:
    """If torch refuses a type, and the weights are of another precision than ``x``, say that in place of its words.

    Of a network that casts what it is given, any other failure, such as want of memory, keeps its own.
    """
    try:
        yield
    except RuntimeError as error:
        kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
        of_types = "type" in str(error).lower()
        if not of_types or not kinds or x.dtype in kinds or torch.is_autocast_enabled(x.device.type):
            raise
        kind = kinds.pop()
        raise TypeError(
            f"x has dtype {x.dtype}, and the network's weights {kind}: expected one precision. Write x.to({kind}), or "
            f"network.to({x.dtype}). For a network in half precision keep both in torch.float32, and run it within "
            f"torch.autocast({x.device.type!r}, dtype=torch.bfloat16)."
        ) from error


def check_output(output: Any, windows_shape: Sequence[int]) -> None:
    """Raise unless the network gave one output of the same spatial shape for each window."""
    if not isinstance(output, Tensor):
        raise TypeError(f"network gave a {type(output).__name__}, expected one tensor (window, channel, z, y, x).")
    n, _, *sizes = windows_shape
    if output.ndim != 5 or (output.shape[0], *output.shape[2:]) != (n, *sizes):
        raise ValueError(
            f"network took windows of shape {tuple(windows_shape)} and gave {tuple(output.shape)}, expected "
            f"({n}, channel, {', '.join(map(str, sizes))}): the spatial shape must stay. "
            "For an odd kernel k, write padding=k // 2."
        )


def check_leaves(output: Tensor, leaves: Iterable[Tensor]) -> None:
    """Raise if ``output`` depends on a tensor that requires a gradient and is none of ``leaves``: it would get none."""
    known = {id(leaf) for leaf in leaves}
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(before for before, _ in node.next_functions)
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:  # type: ignore[attr-defined]
            shape = tuple(node.variable.shape)  # type: ignore[attr-defined]
            raise ValueError(
                f"network uses a tensor of shape {shape} that requires a gradient and is not among its parameters: "
                "blocks would lose that gradient. Register it as an nn.Parameter, give it as a channel of x, or "
                "detach it."
            )


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return how often each tensor was changed in place."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


class State:
    """What must be in backward as it was in forward: or else backward would run another network."""

    def __init__(self, network: nn.Module, parameters: Sequence[Tensor], *, exact: bool) -> None:
        self.parameters, self.exact = parameters, exact
        self.fixed = {name: value for name, value in _tensors(network, exact).items() if not value.requires_grad}
        self.before = versions([*parameters, *self.fixed.values()])
        self.setup = self._setup(network)

    def _setup(self, network: nn.Module) -> object:
        return signature(network) if self.exact else [module.training for module in network.modules()]

    def check(self, network: nn.Module) -> None:
        """Raise if a parameter, a buffer or a setting was changed between forward and backward."""
        now, what = _tensors(network, self.exact), ""
        if versions([*self.parameters, *self.fixed.values()]) != self.before:
            what = "A parameter or buffer of the network was changed in place"
        elif any(now.get(name) is not value for name, value in self.fixed.items()):
            what = "A frozen parameter or a buffer of the network was replaced"
        elif self._setup(network) != self.setup:
            what = "The network's layers, settings or training flags were changed"
        if what:
            raise RuntimeError(
                f"{what} between forward and backward, by optimizer.step() or network.train() for instance: the "
                "gradient would be that of another network. Call backward first."
            )


def _tensors(network: nn.Module, exact: bool) -> dict[str, Tensor]:
    """Return parameters and buffers; if not ``exact``, no buffers: the network itself may change them."""
    return {**dict(network.named_parameters()), **(dict(network.named_buffers()) if exact else {})}


@contextmanager
def parametrizations_afresh() -> Iterator[None]:
    """Compute parametrized weights again, also in ``parametrize.cached()``: the cache would hide their gradients."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled


@contextmanager
def no_side_effects(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Raise if the network, while it runs, changes a buffer of its own or draws random numbers."""
    names, before = [name for name, _ in network.named_buffers()], versions(network.buffers())
    simulated = detect_fake_mode() is not None  # shapes without numbers: nothing is drawn
    drawn = None if simulated else [state.numpy().tobytes() for state in random_state(device)]
    yield
    changed = [name for name, old, new in zip(names, before, versions(network.buffers()), strict=True) if old != new]
    if changed:
        raise ValueError(
            f"network changes its buffer {changed[0]!r} each time it runs, so every block would see another network. "
            "Write network.eval()."
        )
    if not simulated and drawn != [state.numpy().tobytes() for state in random_state(device)]:
        raise ValueError(
            "network draws random numbers, as dropout does: blocks draw others than the whole volume. "
            "Write network.eval()."
        )


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the random generators that a network on ``device`` may draw from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


@contextmanager
def random_state_as(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw from ``state`` for a while, then go on as if nothing was drawn. Without a state, do nothing."""
    if not state:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield


def _active_dropout(network: nn.Module) -> list[str]:
    """Name the layers that draw random numbers as the network stands."""
    random = (nn.modules.dropout._DropoutNd, nn.RReLU)
    named = [(name, module) for name, module in network.named_modules() if isinstance(module, random)]
    return [f"{name!r} ({module})" for name, module in named if module.training and getattr(module, "p", 1) > 0]


def _raise_or_warn(problems: list[str], exact: bool) -> None:
    if problems and exact:
        raise ValueError(problems[0])
    for problem in problems:
        warnings.warn(f"Blocks will not give the whole volume's answer. {problem}", stacklevel=4)


def _check_divisible(volume_shape: Shape3, stride: Shape3) -> None:
    needed = _rounded(volume_shape, stride)
    if needed != volume_shape:
        z, y, x = (n - size for n, size in zip(needed, volume_shape, strict=True))
        raise ValueError(
            f"x has {volume_shape} voxels (z, y, x), expected multiples of the network's stride {stride}. Pad it to "
            f"{needed}: torch.nn.functional.pad(x, (0, {x}, 0, {y}, 0, {z}))."
        )


def _rounded(sizes: Shape3, stride: Shape3) -> Shape3:
    z, y, x = (round_up(size, multiple) for size, multiple in zip(sizes, stride, strict=True))
    return z, y, x
