"""What a public name or parameter was called before: it goes on working, and says what to write in its place.

The warning is a ``FutureWarning``: Python shows it everywhere, a ``DeprecationWarning`` only where the caller is a
script or a notebook.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_parameter(old: str, new: str, *, gone_in: str) -> Callable[[Function], Function]:
    """Let the decorated function still take ``old=`` for its parameter ``new``, until version ``gone_in``.

    A call with both raises ``TypeError``. The signature shows ``new`` alone.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__} got {old} and {new}, which are the same: write {new} alone.")
                _warn(f"{old}= of {function.__name__}", f"{new}=", gone_in, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def renamed(module: str, old: str, new: str, *, gone_in: str) -> Any:
    """Return what ``module`` now calls ``new``; for its ``__getattr__`` to call when asked for ``old``."""
    _warn(f"{module}.{old}", f"{module}.{new}", gone_in, stacklevel=4)
    return getattr(import_module(module), new)


def _warn(old: str, new: str, gone_in: str, *, stacklevel: int) -> None:
    message = f"{old} is now {new}: write that. The old name goes in blockkit {gone_in}."
    warnings.warn(message, FutureWarning, stacklevel=stacklevel)
