"""What makes two runs alike: numbers drawn from the seed and the step, and no sum whose order is left to threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_APART = 2**40  # from the seeds of the other draws of a run


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Let torch take no algorithm whose bits differ from run to run, and finufft one thread, if it is ``wanted``."""
    if not wanted:
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def generator(seed: int, position: int, use: int) -> torch.Generator:
    """Return a generator for one position of a run, so that a resumed run draws what the whole one did."""
    return torch.Generator().manual_seed(_number(seed, position, use))


@contextmanager
def drawn_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw what a network draws by itself, such as dropout, from the seed and the step; then all is as it was before.

    So a checkpoint needs no state of a random number generator, and a step that is tried again draws the same.
    """
    number = _APART + _number(seed, step, 1)
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(number)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


def _number(seed: int, position: int, use: int) -> int:
    return seed * 1_000_003 + 2 * position + use
