"""What the pages in docs/ name exists."""

import ast
import hashlib
import html
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import blockkit as bk
from blockkit import cli
from blockkit.mbdl.weights import SHIPPED
from tools import fill_card, make_docs

ROOT = Path(__file__).parents[1]
CARD = (ROOT / "docs" / "model_card.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_model_card_says_what_the_weights_file_holds() -> None:
    model, content = bk.pretrained(), (ROOT / "data_samples" / SHIPPED).read_bytes()
    regularizer = model.regularizers[0]
    said = dict(re.findall(r"^\| ([\w, ]+) \| `?([\w.,/]+)`?", CARD, re.MULTILINE))
    assert int(said["n_unrolls"]) == model.n_unrolls == len(model.regularizers)
    assert int(said["regularizer, n_channels"]) == regularizer.n_channels
    assert int(said["regularizer, n_layers"]) == regularizer.n_layers
    assert said["number of weights"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert f"{len(content):,} bytes" in CARD
    assert said["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_tables_of_the_model_card_are_those_of_the_results() -> None:
    assert fill_card.filled(CARD) == CARD, "run: python tools/fill_card.py"
    assert "not for clinical use" in CARD


def test_a_card_with_another_number_is_filled_anew() -> None:
    wrong = CARD.replace("| n_unrolls | ", "| n_unrolls | 9")
    assert wrong != CARD
    assert fill_card.filled(wrong) == CARD


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torchkbnufft, when it is imported
def test_the_glossary_s_lines_give_the_same_kspace_in_each_program() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GLOSSARY, re.DOTALL)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(code, "glossary.md", "exec"), names)
    trajectory, kspace = names["trajectory"], names["kspace"]
    exact = bk.DirectFourier(trajectory, names["shape"])(names["image"])
    for program in ("kspace", "in_sigpy", "in_torchkbnufft"):
        assert (torch.as_tensor(names[program]) - exact).norm() < 1e-3 * kspace.norm(), program
    for_bart = names["for_bart"]
    assert for_bart.shape == (3, 24, 40)
    assert torch.equal(torch.as_tensor(for_bart[:, 5, 7]).flip(0), trajectory[7 * 24 + 5])


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torchkbnufft, when it is imported
@pytest.mark.parametrize("program", ["sigpy", "torchkbnufft"])
def test_the_names_that_the_glossary_gives_another_program_are_there(program: str) -> None:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in GLOSSARY.splitlines()]
    head = next(line for line in lines if line[0] == "here")
    column = [cell.lower() for cell in head].index(program)
    start = lines.index(head) + 2
    cells = [line[column] for line in lines[start : start + 23] if len(line) == len(head)]
    arguments = {"img", "ksp", "y", "coord", "mps", "A.H", "A.N", "lamda", "image", "kdata", "omega", "smaps"}
    named = {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)} - arguments
    assert len(named) >= 4
    module = __import__(program)
    import sigpy.mri  # noqa: F401

    for name in named:
        place = module
        for part in name.split("."):
            place = getattr(place, part)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs pip install -e '.[docs]'")
def test_the_reference_is_built_without_a_warning_and_shows_every_public_name(tmp_path: Path) -> None:
    built = tmp_path / "docs"
    command = [sys.executable, str(ROOT / "tools" / "make_docs.py"), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (built / "reference").glob("*.html")}
    assert pages.keys() == make_docs.WINGS.keys() - {"cli"}
    everything = "".join(pages.values())
    index = plain((built / "index.html").read_text(encoding="utf-8"))
    for name, thing in make_docs.public().items():
        assert f'id="blockkit.{name}"' in everything, name
        start = re.split(r":\w+:`", make_docs.summary(thing))[0].replace("``", "")
        words = re.sub(r"\*(\w+)\*", r"\1", start).split()[:8]
        assert " ".join(words) in index, name
    assert not re.search(r":(func|class|mod|meth|math|data):`|\.\. math::|\]_", everything)
    assert "<math" in everything
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="https?:', everything), "it can be read without a network"


def plain(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).replace("’", "'").split())
