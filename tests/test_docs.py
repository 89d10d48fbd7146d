"""What the pages in docs/ name exists."""

import ast
import re
from pathlib import Path

import pytest

import blockkit as bk
from blockkit import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_there_are_pages_to_look_at() -> None:
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_command_and_folder_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"\bbk\.(\w+)", text))
    assert names
    assert {name for name in names if not hasattr(bk, name)} == set()
    commands = {module.__name__.rsplit(".", 1)[1] for module in cli.COMMANDS}
    assert set(re.findall(r"python -m blockkit (\w+)", text)) <= commands
    assert [
        path for path in re.findall(r"`((?:tests|data_samples|notebooks)/[\w/.]*)`", text) if not (ROOT / path).exists()
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_can_be_parsed(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
