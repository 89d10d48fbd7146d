"""Run a network on a small volume while watching every operation: the instrument behind :mod:`.reach`.

Two things are done to the operations as they pass by. Convolutions are replaced by a stand-in with the same geometry
(kernel, stride, dilation, groups, padding) and rank-one positive weights, which costs one channel instead of many and
leaves no weight at zero. And on demand the padding is filled with NaN instead of zeros. NaN survives every sum and
product, so what is NaN in the output is what an edge, or a marked input voxel, can touch.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from blockkit.blockwise import blame
from blockkit.blockwise.marks import Call, Marks
from blockkit.blockwise.trace import Event
from blockkit.blockwise.watch import Calls, Watch

_DOUBLE = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)
_DOUBLE |= {torch.complex64: torch.complex128}
_ROUNDING = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-2}


class DecisionError(ValueError):
    """The network decides by the numbers in its input what to compute."""


class Probe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One watched run.

    Parameters
    ----------
    watch
        Follows the modules of the network that will run.
    grown
        For each operation, the axes of its first input that grow with the probed axis of the volume; from
        :func:`growing_axes`. With it, padding on these axes is NaN.
    nan
        The input has NaN in it.
    """

    def __init__(self, watch: Watch, grown: list[tuple[int, ...]] | None = None, *, nan: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch, self.grown, self.nan = watch, grown, nan or grown is not None
        self.marks = Marks(carry=self.nan)
        self.events: list[Event] = []
        self.inspect: Callable[[int, Sequence[Tensor], Sequence[Tensor]], None] | None = None
        self.tolerance = 1e-9
        """Relative rounding error to expect, from the coarsest type that passed by."""
        self._calls = Calls()
        self._text = ""

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return ``network(x)``, watched, without a graph, and without moving the random state."""
        self.watch.stack.clear()
        x = x.clone()  # the first layer may overwrite its input
        self.marks.add(x)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self, self._calls:
            torch.default_generator.manual_seed(0)
            result: Tensor = network(x)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else the first operation imports PyTorch's compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        call = Call(func, args, kwargs, inputs)
        op, self._text = call.op, ""
        if op == "_to_copy" and kwargs.get("dtype") in _DOUBLE:  # the copy of the network is in double precision
            call.kwargs = kwargs = {**kwargs, "dtype": _DOUBLE[kwargs["dtype"]]}
        layer = self.watch.stack[-1] if self.watch.stack else "the network"
        if self.marks.decides(op, inputs):
            raise DecisionError(blame.decision(layer, self._calls.name))
        handler = _HANDLERS.get(op)
        if handler:
            call.handler = lambda x: handler(self, func, x, *args[1:], **kwargs)
        call.before = self.marks.before(op, inputs)
        shapes_in = tuple(value.shape for value in inputs)
        result = call.handler(args[0]) if call.handler else func(*args, **kwargs)
        call.outputs = [value for value in _flat((result,)) if isinstance(value, Tensor)]
        derived = self.marks.follow(call)
        options = self._calls.options
        if op == "index":
            options = {**options, "axes": [i for i, index in enumerate(args[1]) if index is not None]}
        self.events.append(
            Event(
                layer,
                self._calls.name,
                op,
                call.pointwise,
                not derived,
                handler is not None,
                shapes_in,
                tuple(value.shape for value in call.outputs),
                self._text,
                options,
            )
        )
        for value in call.outputs:
            self.tolerance = max(self.tolerance, _ROUNDING.get(value.dtype, 0.0))
        if self.inspect:
            marks = ([self.marks.of(value) for value in values] for values in (inputs, call.outputs))
            self.inspect(len(self.events) - 1, *marks)
        return result

    def edges(self, x: Tensor, n: int) -> list[bool]:
        """Say for each of the last ``n`` axes of ``x`` whether its padding is to be NaN."""
        axes = self.grown[len(self.events)] if self.grown and len(self.events) < len(self.grown) else ()
        return [x.ndim - n + i in axes for i in range(n)]

    def convolution(
        self,
        func: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> Tensor:
        """Stand in for any convolution: mix the channels of a group to one, convolve it, spread it to the outputs."""
        n = weight.ndim - 2
        expected = weight.shape[0] if transposed else weight.shape[1] * groups
        if x.shape[1] != expected:
            raise RuntimeError(f"the convolution expects {expected} channels, but got {x.shape[1]}")
        kernel_shape = tuple(weight.shape[2:])
        self._text = f"kernel {kernel_shape}, stride {tuple(_each(stride, n))}, dilation {tuple(_each(dilation, n))}"
        stride, padding, dilation, output_padding = (_each(v, n) for v in (stride, padding, dilation, output_padding))
        batch, n_in = x.shape[0], x.shape[1] // groups
        n_out = weight.shape[1] if transposed else weight.shape[0] // groups
        mixed = torch.einsum("bgc...,c->bg...", x.reshape(batch, groups, n_in, *x.shape[2:]), _ramp(n_in, x, 1 / n_in))
        mixed = mixed.flatten(0, 1)[:, None]
        kernel = torch.ones(1, 1, *kernel_shape, dtype=x.dtype, device=x.device)
        for i, k in enumerate(kernel_shape):
            taps = 1 + 0.4 * torch.sin(1.7 * torch.arange(k, dtype=torch.float64, device=x.device) + 0.3 + i)
            scale = (stride[i] if transposed else 1) / float(taps.sum())
            kernel = kernel * (scale * taps).to(kernel.dtype).reshape(-1, *[1] * (n - 1 - i))
        edges = self.edges(x, n)
        if transposed:
            y = _transposed(mixed, kernel, stride, padding, dilation, output_padding, edges)
        else:
            mixed = _pad_nan(mixed, [p if e else 0 for p, e in zip(padding, edges, strict=True)])
            inner = [0 if e else p for p, e in zip(padding, edges, strict=True)]
            y = torch.convolution(mixed, kernel, None, stride, inner, dilation, False, [0] * n, 1)
        ramp = _ramp(n_out, y, 1.0 + 0.1 * float(torch.tanh(weight.mean().real)))
        y = (y.reshape(batch, groups, 1, *y.shape[2:]) * ramp.reshape(-1, *[1] * n)).flatten(1, 2)
        return y if bias is None else y.add_(bias.to(y.dtype).reshape(-1, *[1] * n))

    def pool(self, func: Any, x: Tensor, kernel: list[int], stride: Any = (), padding: Any = 0, *rest: Any) -> Any:
        """Pool; a NaN edge is padded first and then pooled without padding."""
        n = _n_spatial(func)
        kernel, padding = _each(kernel, n), _each(padding, n)
        stride = _each(stride, n) if stride else kernel
        self._text = f"kernel {tuple(kernel)}, stride {tuple(stride)}"
        result = func(x, kernel, stride, padding, *rest)
        edges = [e and p > 0 for e, p in zip(self.edges(x, n), padding, strict=True)]
        if not any(edges):
            return result
        wide = _pad_nan(x, [p if e else 0 for p, e in zip(padding, edges, strict=True)])
        inner = [0 if e else p for p, e in zip(padding, edges, strict=True)]
        pooled = func(wide, kernel, stride, inner, *rest)
        if isinstance(result, Tensor):
            return _marked(result, pooled)
        return (_marked(result[0], pooled[0]), *result[1:])

    def upsample(self, func: Any, x: Tensor, *args: Any) -> Tensor:
        """Resample; NaN comes from beyond the edges, and goes only where the weight of a neighbor is not zero."""
        result: Tensor = func(x, *args)
        n, kind = _n_spatial(func), _RESAMPLING[func.overloadpacket.__name__[:-2]]
        ratios = [Fraction(a, b) for a, b in zip(result.shape[-n:], x.shape[-n:], strict=True)]
        self._text = f"{kind} resampling by ({', '.join(map(str, ratios))})"
        if not self.nan:
            return result
        corners = None if "nearest" in kind else bool(args[1])
        edges = [e and not corners for e in self.edges(x, n)]
        margins = [2 * r.denominator if e else 0 for r, e in zip(ratios, edges, strict=True)]
        wide = _pad_nan(x, margins).isnan().to(x.dtype)
        size = [int(s * r) for s, r in zip(wide.shape[-n:], ratios, strict=True)]
        touched = F.interpolate(wide, size, mode=kind, align_corners=corners).abs()
        for i, (margin, ratio) in enumerate(zip(margins, ratios, strict=True)):
            touched = touched.narrow(2 + i, int(margin * ratio), result.shape[2 + i])
        plain: Tensor = func(x.nan_to_num(0.0), *args)
        return plain.masked_fill(touched > 1e-6, math.nan)

    def pad(self, func: Any, x: Tensor, pad: list[int], *value: Any) -> Tensor:
        """Pad; on a NaN edge what was padded becomes NaN, whatever the mode."""
        result: Tensor = func(x, pad, *value)
        n = len(pad) // 2
        for i, edge in enumerate(self.edges(x, n)):
            before, after = pad[2 * (n - 1 - i)], pad[2 * (n - 1 - i) + 1]
            axis = result.ndim - n + i
            if edge and before > 0:
                result.narrow(axis, 0, before).fill_(math.nan)
            if edge and after > 0:
                result.narrow(axis, result.shape[axis] - after, after).fill_(math.nan)
        return result

    def dropout(self, func: Any, x: Tensor, p: float = 0.5, **kwargs: Any) -> Tensor:
        """Keep every voxel: the mask is its own expected value."""
        return x.fill_(p)


_RESAMPLING = {
    "upsample_linear": "linear",
    "upsample_bilinear": "bilinear",
    "upsample_trilinear": "trilinear",
    "upsample_bicubic": "bicubic",
    "upsample_nearest": "nearest",
    "_upsample_nearest_exact": "nearest-exact",
}
_HANDLERS: dict[str, Callable[..., Any]] = {
    "convolution": Probe.convolution,
    "bernoulli_": Probe.dropout,
    "constant_pad_nd": Probe.pad,
    **{f"{kind}_pad{n}d": Probe.pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    **{f"avg_pool{n}d": Probe.pool for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": Probe.pool for n in (2, 3)},
    **{f"{kind}{n}d": Probe.upsample for kind in _RESAMPLING for n in (1, 2, 3)},
}


def _n_spatial(func: Any) -> int:
    """Read the number of spatial axes from a name such as ``max_pool3d_with_indices``."""
    name: str = func.overloadpacket.__name__
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _flat(values: Any) -> list[Any]:
    return [inner for v in values for inner in (_flat(v) if isinstance(v, list | tuple) else [v])]


def _each(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _ramp(size: int, like: Tensor, scale: float) -> Tensor:
    """Return positive weights around ``scale``, all different."""
    weights = torch.linspace(0.7, 1.3, size, dtype=like.dtype, device=like.device) if size > 1 else like.new_ones(1)
    return scale * weights


def _pad_nan(x: Tensor, margins: list[int]) -> Tensor:
    """Put ``margins`` of NaN around the last axes of ``x``."""
    both = [m for margin in reversed(margins) for m in (margin, margin)]
    return F.pad(x, both, value=math.nan) if any(both) else x


def _marked(result: Tensor, pooled: Tensor) -> Tensor:
    return pooled if pooled.shape == result.shape else torch.full_like(result, math.nan)


def _transposed(
    x: Tensor,
    kernel: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int],
    edges: list[bool],
) -> Tensor:
    """Convolve, transposed; beyond a NaN edge there are NaN voxels instead of none."""
    n = len(stride)
    spans = [d * (k - 1) + p for d, k, p in zip(dilation, kernel.shape[2:], padding, strict=True)]
    margins = [-(-span // s) + 1 if e else 0 for span, s, e in zip(spans, stride, edges, strict=True)]
    y = torch.convolution(_pad_nan(x, margins), kernel, None, stride, padding, dilation, True, output_padding, 1)
    for i in range(n):
        cut = margins[i] * stride[i]
        y = y.narrow(2 + i, cut, y.shape[2 + i] - 2 * cut)
    return y
