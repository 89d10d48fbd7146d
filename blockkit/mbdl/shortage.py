"""What is done when memory runs out all the same: tell it from other errors, make room, and try again."""

import gc
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from blockkit.blockwise.resident import give_back_heap
from blockkit.mbdl.room import NoRoomError

T = TypeVar("T")
_NO_CODE = re.compile("could not create a primitive$")  # oneDNN: without room for its code, or once it had none
_SIGNS = re.compile(
    "allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|malloc"
    f"|could not create a memory|{_NO_CODE.pattern}"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, on the CPU or a GPU: torch and each library have their own words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None


def with_room(action: Callable[[], T], make_room: Callable[[str, bool], None]) -> T:
    """Return what ``action`` returns; when memory runs out, make room and begin it anew.

    Where oneDNN once had no room for the code of a kernel, it makes none in that thread again, however much is free.
    Then ``action`` goes on in threads of its own.

    Parameters
    ----------
    action
        To be run, from its beginning each time.
    make_room
        Called when all that the failed try held is free again, with what was said, and whether it was a prediction
        alone, before anything was taken. Raises if it can do no more.
    """
    call: Callable[[Callable[[], T]], T] = _here
    while True:
        try:
            return call(action)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said, foreseen = (str(error).strip() or "no memory").splitlines()[0], isinstance(error, NoRoomError)
        # the error is gone here, and with it the frames that held the tensors of the failed try
        give_back_free_memory()
        if call is _here and _NO_CODE.search(said):
            call = _in_new_thread
        else:
            make_room(said, foreseen)


def _here(action: Callable[[], T]) -> T:
    return action()


def _in_new_thread(action: Callable[[], T]) -> T:
    """Run it in a new thread, with what torch keeps for each thread as it is here."""
    with_grad, dtype = torch.is_grad_enabled(), torch.get_autocast_dtype("cpu")
    autocast = torch.autocast("cpu", dtype, enabled=torch.is_autocast_enabled("cpu"))

    def run() -> T:
        with torch.set_grad_enabled(with_grad), autocast:
            return action()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


def give_back_free_memory() -> None:
    """Give back what is free but held: in circles of Python's objects, by torch's cache on a GPU, by the C library."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_heap()
