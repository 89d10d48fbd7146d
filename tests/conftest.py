"""What holds for every test: one thread a process, and what needs a GPU is skipped, with a word, where there is none.

The tests are small and their processes many; on one thread a sum also has the same last bits every time.
"""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
