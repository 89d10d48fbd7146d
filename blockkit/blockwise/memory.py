"""Peak memory of tensors: counted while a function runs, or predicted to the byte while nothing is computed.

Both use one counter. It stands between PyTorch and its kernels, adds the bytes of each storage that an operation
creates, and takes them off when the storage dies. :func:`measure_peak` lets the kernels run. :func:`predict_peak` runs
the same function on fake tensors, which have shapes but no data: the counter sees the same storages come and go.

A storage that was there before counts 0, also when it is viewed: the figure is what the call adds. Bytes that a library
takes outside PyTorch are counted where :mod:`blockkit.ledger` declares them. Not counted is what a kernel takes for
itself and gives back before it returns (oneDNN's scratch): ``resident_bytes`` shows it.
"""

import os
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from blockkit import ledger
from blockkit.blockwise.resident import resident_growth
from blockkit.blockwise.restore import everything_restored


@dataclass
class Peak:
    """What a ``with measure_peak()`` block took at most, beyond what was there when it began."""

    bytes: int = 0
    """Tensors created inside, and bytes declared in the ledger: the same on every machine."""
    created_bytes: int = 0
    """All of these that were ever created, whether they died or not. Each is written at least once, so it is time."""
    resident_bytes: int | None = None
    """Growth of the process's own resident memory, sampled every 2 ms: with scratch and heap, different from run to
    run, and less than the truth if the process holds freed memory. None where it is not known (not on Linux)."""
    cuda_bytes: int | None = None
    """Growth of what PyTorch's allocator gave out on the current CUDA device. None without CUDA."""
    parts: dict[str, int] = field(default_factory=dict)
    """``bytes`` by what they are for, where the code says so (:func:`blockkit.ledger.part`); the rest is "other"."""


@contextmanager
def measure_peak() -> Iterator[Peak]:
    """Count the peak memory of what runs inside the ``with`` block, forward and backward.

    Yields
    ------
    Peak
        ``bytes`` and ``created_bytes`` are up to date at any time; ``resident_bytes`` and ``cuda_bytes`` are set at the
        end.

    Examples
    --------
    >>> with bk.measure_peak() as peak:
    ...     y = torch.zeros(1000) + torch.zeros(1000)
    >>> peak.bytes
    12000
    """
    peak = Peak()
    with resident_growth(peak), _cuda_growth(peak), _counting(peak, None):
        yield peak


def predict_peak(function: Callable[..., object], *args: object) -> int:
    """Return the peak bytes that ``function(*args)`` would take, without computing or allocating anything.

    The function may use real tensors, modules and optimizers from anywhere, run backward, and step. Afterwards all of
    them are as before: parameters, buffers, gradients, optimizer states, random state.

    Parameters
    ----------
    function
        What to predict. Its result is thrown away.
    *args
        Its arguments; tensors among them count 0.

    Returns
    -------
    int
        Bytes: equal to ``peak.bytes`` of :func:`measure_peak` around the same call.

    Raises
    ------
    ValueError
        If the function needs a number that only computing can give, such as ``loss.item()``.

    Notes
    -----
    Keep no tensors in lists or objects of your own inside the function: they would be fake ones. Modules, optimizers
    and learning-rate schedulers are restored.

    Examples
    --------
    >>> bk.predict_peak(lambda: torch.zeros(1000, 1000, 1000) + 1)
    8000000000
    """
    return predict(function, *args).bytes


def predict(function: Callable[..., object], *args: object) -> Peak:
    """Do what :func:`predict_peak` does, and return the bytes by part too."""
    peak = Peak()
    with _disable_current_modes(), everything_restored(), ExitStack() as stack:
        fake_mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        counter = stack.enter_context(_counting(peak, fake_mode))
        stack.enter_context(_Readings())
        try:
            function(*tree_map_only(Tensor, counter.fake_argument, args))
        except (DataDependentOutputException, DynamicOutputShapeException, _NoDataError) as error:
            raise ValueError(_needs_data(error)) from error
    return peak


@contextmanager
def _counting(peak: Peak, fake_mode: FakeTensorMode | None) -> Iterator["_Counter"]:
    counter = _Counter(peak, fake_mode)
    with ledger.listen(counter.add), counter:
        yield counter


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations create, until they die. With ``fake_mode``, makes all inputs fake first."""

    def __init__(self, peak: Peak, fake_mode: FakeTensorMode | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self.fake_mode, self.now = peak, fake_mode, 0
        self.sizes: dict[int, int] = {}
        self.parts: dict[str, int] = {}
        self.part_of: dict[int, str] = {}
        self.watches: dict[int, weakref.ref[Any]] = {}
        self.fakes: Any = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else the first operation imports PyTorch's compiler: seconds

    def add(self, n_bytes: int, part: str) -> None:
        """Take ``n_bytes`` more for ``part``, or fewer if negative, and remember the peak and what was ever taken."""
        self.now += n_bytes
        self.peak.created_bytes += max(n_bytes, 0)
        self.parts[part] = self.parts.get(part, 0) + n_bytes
        if self.now > self.peak.bytes:
            self.peak.bytes, self.peak.parts = self.now, {name: n for name, n in self.parts.items() if n}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lifted = func.overloadpacket.__name__ in ("lift_fresh", "lift")
        if self.fake_mode is not None and not lifted:
            args, kwargs = self.all_fake(args), self.all_fake(kwargs)
        old = {storage._cdata: storage.nbytes() for storage in _storages((args, kwargs))}
        returns = func._schema.returns
        result = _viewed(func, args, kwargs) if _is_view(returns) and not lifted else func(*args, **kwargs)
        values = result if isinstance(result, tuple | list) and len(returns) > 1 else (result,)
        for value, declared in zip(values, returns, strict=False):
            written = declared.alias_info is not None and declared.alias_info.is_write
            for storage in () if written else _storages(value):
                if lifted or storage._cdata not in old:
                    self.watch(storage, 0)
        if func._schema.is_mutable:
            for storage in _storages((args, kwargs)):
                if storage.nbytes() != old.get(storage._cdata, 0):
                    self.watch(storage, old.get(storage._cdata, 0))
        return result

    def watch(self, storage: torch.UntypedStorage, before: int) -> None:
        """Count a storage that is new, or that has another size than ``before``, until it dies."""
        key = storage._cdata
        if key not in self.watches:
            self.sizes[key] = before
            self.part_of[key] = ledger.current_part()
            base = before

            def forget(_: object) -> None:
                del self.watches[key]
                self.add(base - self.sizes.pop(key), self.part_of.pop(key))

            self.watches[key] = weakref.ref(storage, forget)
        self.add(storage.nbytes() - self.sizes[key], self.part_of[key])
        self.sizes[key] = storage.nbytes()

    def all_fake(self, tree: Any) -> Any:
        """Return nested lists, tuples and dicts with a fake for each tensor in them."""
        if isinstance(tree, Tensor):
            return self.fake(tree)
        if type(tree) in (list, tuple):
            return type(tree)(map(self.all_fake, tree))
        return {key: self.all_fake(value) for key, value in tree.items()} if type(tree) is dict else tree

    def fake(self, value: Tensor) -> Tensor:
        """Return the fake that stands for a tensor; views of one storage stand on one fake storage."""
        if isinstance(value, FakeTensor) or self.fake_mode is None:
            return value
        known: FakeTensor | None = self.fakes.get(value)
        if known is None:
            with _disable_current_modes():
                plain = value.detach()
                single = plain.clone() if value.numel() == 1 and value.device.type == "cpu" else None
            known = self.fake_mode.from_tensor(plain, static_shapes=True)
            known.constant = single  # a step count or a norm: its value may be asked for
            self.fakes[value] = known
        return known

    def fake_argument(self, value: Tensor) -> Tensor:
        """Return a fake that a function can be called with: a leaf, if a gradient is asked for."""
        return self.fake(value).detach().requires_grad_(value.requires_grad)


def _is_view(returns: Any) -> bool:
    alias = returns[0].alias_info if len(returns) == 1 and str(returns[0].type) == "Tensor" else None
    return alias is not None and not alias.is_write


def _viewed(func: Any, args: Any, kwargs: Any) -> Any:
    """Take a view. Of a fake that knows its value, FakeTensorMode would make a new storage: the value is put aside."""
    base = args[0] if args else None
    if not isinstance(base, FakeTensor) or base.constant is None:
        return func(*args, **kwargs)
    known, base.constant = base.constant, None
    try:
        result = func(*args, **kwargs)
    finally:
        base.constant = known
    with _disable_current_modes():
        result.constant = func(known, *args[1:], **kwargs)
    return result


class _NoDataError(Exception):
    """A fake tensor was asked for its numbers."""


class _Readings(TorchFunctionMode):
    """Lets NumPy read real tensors while memory is predicted, but not fake ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.numpy, Tensor.__array__, Tensor.tolist):
            return func(*args, **(kwargs or {}))
        if isinstance(args[0], FakeTensor):
            raise _NoDataError(func.__name__)
        with _disable_current_modes():
            return func(*args, **(kwargs or {}))


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of all tensors in nested lists, tuples and dicts, except those on no device."""
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided and tree.device.type != "meta":
            yield tree.untyped_storage()
    elif isinstance(tree, list | tuple):
        for inner in tree:
            yield from _storages(inner)
    elif isinstance(tree, dict):
        yield from _storages(list(tree.values()))


def _needs_data(error: Exception) -> str:
    """Say which line asked for a number that nobody computed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename and frame.filename != __file__]
    where = f"{os.path.basename(own[-1].filename)}, line {own[-1].lineno}: {own[-1].line}" if own else "the function"
    return (
        "predict_peak computes nothing, but the function asks for a number that only computing can give, by .item(), "
        f"float(), bool(), .numpy() or an index that depends on the data ({where}). Take that line out of the "
        "function, or compute the number beforehand and pass it in."
    )


@contextmanager
def _cuda_growth(peak: Peak) -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        peak.cuda_bytes = torch.cuda.max_memory_allocated() - before
