"""What holds for every test: one thread a process, and what needs a GPU is skipped, with a word, where there is none.

What has a target of its own in the Makefile runs only when its marker is asked for: ``pytest -m long``.

The tests are small and their processes many; on one thread a sum also has the same last bits every time.
"""

import signal

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in the background of a shell, and so children had it
    signal.signal(signal.SIGINT, signal.default_int_handler)


OWN_TARGETS = ("long", "mutation", "ui")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = [name for name in OWN_TARGETS if name not in config.option.markexpr]
    left = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
