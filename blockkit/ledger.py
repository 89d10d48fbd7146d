"""What an account of memory needs to know from those who take it.

Bytes that a library takes outside torch are declared where they are taken: an operator whose library allocates its own
workspace (finufft's fine grid, for one) wraps the call in :func:`outside_torch`, and whoever counts memory subscribes
with :func:`listen`. So the wing that takes the bytes and the wing that counts them need not know each other. What bytes
are for, inside torch or out, is said by :func:`part`.

And a loop that takes the same memory each time round says so by :func:`few_for_all`: to predict its peak, which is done
with fake tensors, three rounds are enough.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

GIB: Final = 2**30  # bytes

Item = TypeVar("Item")
Listener = Callable[[int, str], None]

_listeners: list[Listener] = []
_parts: list[str] = []


@contextmanager
def outside_torch(n_bytes: int) -> Iterator[None]:
    """Declare ``n_bytes`` held outside torch's tensors for the length of the ``with`` block."""
    part = current_part()
    _tell(n_bytes, part)
    try:
        yield
    finally:
        _tell(-n_bytes, part)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call ``listener(+n, part)`` when bytes are taken outside torch, ``listener(-n, part)`` when given back."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def few_for_all(rounds: Sequence[Item], tensor: Tensor) -> Sequence[Item]:
    """Return the ``rounds`` of a loop to go; if ``tensor`` is fake, the first, the second and the last.

    The first may make what the others add to, and the last may have less to do; one in between is like the second.
    """
    if not isinstance(tensor, FakeTensor) or len(rounds) <= 3:
        return rounds
    return [rounds[0], rounds[1], rounds[-1]]


@contextmanager
def part(name: str) -> Iterator[None]:
    """Book what is taken inside the ``with`` block, by tensors or outside torch, under ``name``; the innermost wins."""
    _parts.append(name)
    try:
        yield
    finally:
        _parts.pop()


def current_part() -> str:
    """Return the name of the innermost :func:`part`, or "other"."""
    return _parts[-1] if _parts else "other"


def _tell(n_bytes: int, part: str) -> None:
    for listener in tuple(_listeners):
        listener(n_bytes, part)
