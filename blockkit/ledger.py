"""Bytes that a library takes outside torch, declared where they are taken.

An operator whose library allocates its own workspace (finufft's fine grid, for one) wraps the call in
:func:`outside_torch`; whoever counts memory subscribes with :func:`listen`. So the wing that takes the bytes and the
wing that counts them need not know each other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int], None]

_listeners: list[Listener] = []


@contextmanager
def outside_torch(n_bytes: int) -> Iterator[None]:
    """Declare ``n_bytes`` held outside torch's tensors for the length of the ``with`` block."""
    _tell(n_bytes)
    try:
        yield
    finally:
        _tell(-n_bytes)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call ``listener(+n)`` when bytes are taken outside torch and ``listener(-n)`` when they are given back."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _tell(n_bytes: int) -> None:
    for listener in tuple(_listeners):
        listener(n_bytes)
