"""The mutations of the library take a quarter of an hour, so they run only when asked for: pytest -m mutation."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "mutation" in config.option.markexpr:
        return
    left = [item for item in items if item.get_closest_marker("mutation")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("mutation")]
