"""Ctrl-C, and the signal to end, as an event to look at: so that a run ends between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; and what kill, a batch system or a shutdown sends


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event to look at between steps; a second one acts at once.

    A signal that the process ignores, or that is handled outside Python, is left alone.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(*_: object) -> None:
        event.set()
        give_back()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        give_back()
