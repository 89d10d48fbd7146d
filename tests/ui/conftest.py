"""A JupyterLab and a browser for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[2] / "build" / "ui"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from tools.lab_browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def lab() -> Iterator[Any]:
    from tools.lab_browser import lab_server

    with lab_server() as started:
        yield started


@pytest.fixture
def notebook(lab: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a notebook of the given cells, run it and return the page; see ``Lab.open``."""
    pages = []

    def open_page(*cells: str, **options: Any) -> Any:
        pages.append(lab.open(browser, cells, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture
def screenshot() -> Callable[[Any, str], None]:
    """Keep a picture of a part of a page in build/ui/."""

    def keep(part: Any, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        part.screenshot(path=PICTURES / f"{name}.png")

    return keep
