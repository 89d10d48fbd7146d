"""The files of the set-up agree with one another and with what the code imports."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")
# Declared because a command or a plugin is run or a library is loaded, not because a module is imported.
RUN_NOT_IMPORTED = {
    "jupyterlab",
    "ipykernel",
    "pytest-xdist",
    "pytest-cov",
    "ruff",
    "mypy",
    "import-linter",
    "myst-parser",
    "furo",
}
# Which declared packages each folder may import.
OPTIONAL = {"blockkit": {"anywidget", "lightning-fabric", "mri-nufft", "pydicom"}}  # better with it, works without
MAY_IMPORT = {
    "blockkit": ("dependencies", "cuda"),
    "notebooks": ("dependencies", "lab"),
    "docs": ("dependencies", "docs"),
    "tools": ("dependencies", "lab", "test", "ui", "mutants"),
    "benchmarks": ("dependencies", "lab", "test", "cuda", "ui"),
    "tests": ("dependencies", "lab", "test", "cuda", "ui"),
}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*groups: str) -> dict[str, Requirement]:
    lines = [
        line for group in groups for line in (PROJECT["project"][group] if group == "dependencies" else EXTRAS[group])
    ]
    return {normalized(Requirement(line).name): Requirement(line) for line in lines}


def pinned() -> dict[str, str]:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pins = [line.split("==") for line in lines]
    assert all(len(pin) == 2 for pin in pins), "every line is name==version"
    assert len({normalized(name) for name, _ in pins}) == len(pins), "a package is pinned twice"
    return {normalized(name): version for name, version in pins}


OF_MODULE = metadata.packages_distributions()
EVERYTHING = declared("dependencies", "lab", "test", "cuda", "ui", "docs", "mutants")


def sources(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / folder).rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        lines = "\n".join("".join(cell["source"]) for cell in cells)
        yield path, without_commands(lines)


def without_commands(cells: str) -> str:
    """Return the source of cells as plain Python: a line that is a command of IPython does nothing."""
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", cells, flags=re.MULTILINE)


def imported_modules(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip", "_load")):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return {name.split(".")[0] for name in names}


def imported_distributions(folder: str) -> dict[str, set[Path]]:
    """The third-party packages that the files of a folder import, and where."""
    own = {"blockkit", *MAY_IMPORT, *(path.stem for path in (ROOT / folder).rglob("*.py"))}
    own |= {path.name for path in (ROOT / folder).rglob("*") if path.is_dir()}
    found: dict[str, set[Path]] = {}
    for path, source in sources(folder):
        for module in imported_modules(source) - own - set(sys.stdlib_module_names):
            for distribution in OF_MODULE.get(module, [module]):
                found.setdefault(normalized(distribution), set()).add(path.relative_to(ROOT))
    return found


def test_a_command_of_ipython_does_nothing_also_where_it_is_indented() -> None:
    cells = "%matplotlib inline\nif a:\n    import b\n    %pip install {b.c}\n!ls\nx = 7 % 2"
    assert without_commands(cells) == "pass\nif a:\n    import b\n    pass\npass\nx = 7 % 2"


def closure(requirements: list[Requirement]) -> set[str]:
    """Every package that installing ``requirements`` brings on this machine, as far as the versions are the pinned."""
    pins = pinned()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(item.name, frozenset(item.extras)) for item in requirements]
    while waiting:
        name, extras = waiting.pop()
        if (normalized(name), extras) in seen:
            continue
        seen.add((normalized(name), extras))
        if metadata.version(name).split("+")[0] != pins.get(normalized(name)):
            continue  # another version may need other packages
        for item in map(Requirement, metadata.requires(name) or []):
            if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                waiting.append((item.name, frozenset(item.extras)))
    return {name for name, _ in seen}


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_tested_version_lies_in_the_declared_range(name: str) -> None:
    assert name in pinned(), f"constraints.txt does not pin {name}"
    assert EVERYTHING[name].specifier.contains(pinned()[name])
    assert ">=" in str(EVERYTHING[name].specifier), "a range starts with the oldest version that is known to serve"


def test_what_the_declared_packages_need_is_pinned_too() -> None:
    # torch for a GPU asks for exact versions of the CUDA packages by itself.
    wanted = closure(list(declared("dependencies", "lab", "test").values()))
    missing = {name for name in wanted - set(pinned()) if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not missing


def test_the_pinned_versions_serve_every_python_that_the_metadata_names() -> None:
    for name, version in pinned().items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        wanted = installed.metadata.get("Requires-Python")
        if installed.version.split("+")[0] == version and wanted:
            for python in PYTHONS:
                assert SpecifierSet(wanted).contains(f"{python}.0"), (name, python)


@pytest.mark.parametrize(
    "name", ["constraints.txt", "environment.yml", "pyproject.toml", "tox.ini", "Makefile", ".ci/run"]
)
def test_no_file_of_the_set_up_names_a_registry_or_a_local_build(name: str) -> None:
    assert not re.search(r"://|index-url|find-links|\+cpu|\+cu1", (ROOT / name).read_text(encoding="utf-8"))


def test_the_classifiers_name_the_pythons_that_are_admitted() -> None:
    named = [
        re.findall(r"^Programming Language :: Python :: (3\.\d+)$", text) for text in PROJECT["project"]["classifiers"]
    ]
    assert tuple(version for found in named for version in found) == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


def test_make_versions_tries_the_lowest_versions_on_the_oldest_python_and_the_newest_on_the_newest() -> None:
    config = configparser.ConfigParser()
    config.read_string((ROOT / "tox.ini").read_text(encoding="utf-8"))
    tried = {name.strip() for name in config["tox"]["env_list"].split(",")}
    pythons = ["py" + python.replace(".", "") for python in PYTHONS]
    assert tried <= {f"{python}-{which}" for python in pythons for which in ("lowest", "newest")}
    assert tried >= {f"{pythons[0]}-lowest", f"{pythons[-1]}-newest"}
    assert config["testenv"]["extras"] == "lab, test"  # what `make setup` installs too


def test_warnings_are_errors_and_each_exception_says_why() -> None:
    assert PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]
    exception = re.compile(r'(?:simplefilter|filterwarnings)\("ignore(?!.*  # )')
    lines = [
        (str(path.relative_to(ROOT)), line.strip())
        for folder in ("blockkit", "tests")
        for path, source in sources(folder)
        for line in source.splitlines()
        if exception.search(line)
    ]
    assert not lines, "write the reason beside it"


def test_the_conda_file_only_wraps_pip() -> None:
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()
    entries = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    assert entries == ["conda-forge", "python>=3.11,<3.14", "pip", "pip:", "-c constraints.txt", "-e .[lab,test]"]
    assert set(EXTRAS) >= {"lab", "test"}


def test_the_packages_that_the_conda_file_mentions_are_the_declared_ones() -> None:
    text = " ".join(
        line.removeprefix("#").strip()
        for line in (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    mention = re.search(r"look for here comes that way: ([^.]+)\.", text)
    assert mention is not None
    names = {normalized(name.strip()) for name in mention.group(1).split(",")}
    assert names <= set(EVERYTHING)
    assert set(declared("dependencies")) - {"ipython", "traitlets"} <= names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_third_party_import_is_declared_where_it_is_needed(folder: str) -> None:
    allowed = set(declared(*MAY_IMPORT[folder])) | OPTIONAL.get(folder, set())
    undeclared = {name: where for name, where in imported_distributions(folder).items() if name not in allowed}
    assert not undeclared


def test_every_declared_package_is_used() -> None:
    used = set().union(*(imported_distributions(folder) for folder in MAY_IMPORT))
    loaded = {name for name in EVERYTHING if name.startswith("nvidia-")}
    assert set(EVERYTHING) - used - loaded == RUN_NOT_IMPORTED


def test_every_package_of_the_source_is_in_the_wheel() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts): path.parent for path in (ROOT / "blockkit").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {*found, "blockkit_samples"}


def test_the_console_script_is_the_command_line() -> None:
    from blockkit.cli import main

    (script,) = metadata.distribution("blockkit").entry_points.select(group="console_scripts")
    assert (script.name, script.load()) == ("blockkit", main)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_every_make_command_in_the_prose_exists(name: str) -> None:
    named = set(
        re.findall(r"(?:^|`|echo ')make ([a-z]+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert named
    assert named <= make_targets()


def test_the_first_thing_in_the_readme_is_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first_block = re.search(r"```\w*\n(.*?)```", readme, flags=re.DOTALL)
    assert first_block is not None
    assert re.findall(r"^make \w+", first_block.group(1), flags=re.MULTILINE) == ["make lab", "make test"]
    assert readme[: first_block.start()].count("\n") <= 5


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(encoding="utf-8"), flags=re.MULTILINE)


FIRST = ["test", "long", "docs"]


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    ("stubs", "made", "said"),
    [
        ({"chromium": "exit 0"}, [*FIRST, "ui-setup", "ui"], ""),
        ({"apt-get": 'case "$*" in *chromium*) printf "#!/bin/sh\\n" > $HERE/chromium; chmod +x $HERE/chromium;; esac'},
         [*FIRST, "ui-setup", "ui"], ""),
        ({"apt-get": "exit 100"}, FIRST, "no chromium or chrome is here"),
        ({"chromium": "exit 127", "apt-get": "exit 0"}, FIRST, "no chromium or chrome is here"),
        ({"id": "echo 1000", "apt-get": "echo asked to install; exit 0"}, FIRST, "no chromium or chrome is here"),
        ({"chromium": "exit 0", "make": '[ "$1" != ui-setup ]'}, [*FIRST, "ui-setup"], "pip could not install"),
    ],
    ids=["a browser", "one to install", "none to install", "one that does not start", "not root", "no playwright"],
)  # fmt: skip
def test_continuous_integration_tests_the_widgets_where_there_is_a_browser(
    stubs: dict[str, str], made: list[str], said: str, tmp_path: Path
) -> None:
    done = run_ci(tmp_path, stubs)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text(encoding="utf-8").split() == made
    assert (said in done.stdout) if said else (done.stdout == "")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("failing", ["test", "long", "docs", "ui"])
def test_continuous_integration_fails_where_a_test_fails(failing: str, tmp_path: Path) -> None:
    assert run_ci(tmp_path, {"chromium": "exit 0", "make": f'[ "$1" != {failing} ]'}).returncode != 0


def run_ci(folder: Path, stubs: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run the script where no commands are but these, shell scripts in ``folder`` that note what is made."""
    for name in ("bash", "dirname", "timeout", "chmod"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name, body in {"id": "echo 0", "make": "", **stubs}.items():
        note = 'echo "$1" >> $HERE/made\n' if name == "make" else ""
        (folder / name).write_text(f"#!/bin/sh\n{note}{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {"PATH": str(folder), "HERE": str(folder)}
    script = [str(folder / "bash"), str(ROOT / ".ci" / "run")]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


def test_the_commands_without_make_install_what_make_installs() -> None:
    readme, makefile = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for needed in ("-c constraints.txt", ".[lab,test]", "--nbval", "-m venv"):
        assert needed in readme, needed
        assert needed in makefile, needed


def test_the_license_is_the_one_that_the_metadata_names() -> None:
    assert PROJECT["project"]["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_names_every_notebook() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks
    assert set(re.findall(r"notebooks/(\w+\.ipynb)", readme)) == notebooks


def test_every_name_in_the_readme_exists() -> None:
    import blockkit

    names = set(re.findall(r"\bbk\.(\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {name for name in names if not hasattr(blockkit, name)} == set()
    assert blockkit.__version__ == PROJECT["project"]["version"] == metadata.version("blockkit")


@pytest.mark.slow
def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example is not None
    exec(compile(example.group(1), "README.md", "exec"), {})
    assert re.search(r"PSNR \d+\.\d dB", capsys.readouterr().out)


def test_the_files_that_the_readme_links_to_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)\s]+)\)", readme) if not link.startswith("http")}
    assert links
    assert {link for link in links if not (ROOT / link).exists()} == set()


def test_the_pictures_of_the_readme_are_pictures_and_small() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {Path(path).stem for _, path in shown} == {"slice_viewer", "memory_explorer"}
    for _, path in shown:
        picture = (ROOT / path).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert 20_000 < len(picture) < 300_000, path


def test_the_dev_container_is_set_up_as_the_readme_says() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    command = re.fullmatch(r"make ([a-z-]+)", container["postCreateCommand"])
    assert command is not None
    assert command.group(1) in make_targets()
    image = re.search(r"python:(3\.\d+)", container["image"])
    assert image is not None
    assert image.group(1) in PYTHONS
    vscode = container["customizations"]["vscode"]
    assert {"ms-python.python", "ms-toolsai.jupyter"} <= set(vscode["extensions"])
    venv = re.search(r"^VENV := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert venv is not None
    interpreter = vscode["settings"]["python.defaultInterpreterPath"]
    assert interpreter == f"${{containerWorkspaceFolder}}/{venv.group(1)}/bin/python"


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    top = dict(re.findall(r"^([a-z-]+): \"?([^\"\n]+)\"?$", citation, flags=re.MULTILINE))
    assert (top["version"], top["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])
    assert top["title"].startswith(PROJECT["project"]["name"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (doi,) = re.findall(r"^ +doi: (\S+)$", citation, flags=re.MULTILINE)
    assert readme.count(doi) >= 2
    assert f"version = {{{top['version']}}}" in readme
