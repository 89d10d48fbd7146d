"""What is done when memory runs out all the same: tell it from other errors, make room, and try again."""

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from blockkit.blockwise.resident import give_back_heap
from blockkit.mbdl.room import NoRoomError

T = TypeVar("T")
_SIGNS = re.compile(
    "allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|malloc"
    "|could not create a (memory|primitive$)"  # oneDNN: without room for its code or its scratch
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, on the CPU or a GPU: torch and each library have their own words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None


def with_room(action: Callable[[], T], make_room: Callable[[str, bool], None]) -> T:
    """Return what ``action`` returns; when memory runs out, make room and begin it anew.

    Parameters
    ----------
    action
        To be run, from its beginning each time.
    make_room
        Called when all that the failed try held is free again, with what was said, and whether it was a prediction
        alone, before anything was taken. Raises if it can do no more.
    """
    while True:
        try:
            return action()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said, foreseen = (str(error).strip() or "no memory").splitlines()[0], isinstance(error, NoRoomError)
        # the error is gone here, and with it the frames that held the tensors of the failed try
        give_back_free_memory()
        make_room(said, foreseen)


def give_back_free_memory() -> None:
    """Give back what is free but held: in circles of Python's objects, by torch's cache on a GPU, by the C library."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_heap()
