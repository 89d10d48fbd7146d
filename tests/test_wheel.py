"""What people install: the wheel and the source archive, built without network, and the wheel used by itself."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
FOLDERS = {name: ROOT / ("data_samples" if name == "blockkit_samples" else name.replace(".", "/")) for name in PACKAGES}
LEFT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
USE = """
import sys
from pathlib import Path
import blockkit as bk, blockkit_samples
here = Path(sys.argv[1])
assert all(here in Path(module.__file__).parents for module in (bk, blockkit_samples)), (bk, blockkit_samples)
scan = bk.load_scan(Path(blockkit_samples.__file__).parent / "phantom_scan.h5")
assert scan.maps.shape[1:] == scan.reference.shape, scan
assert bk.pretrained().n_unrolls > 0
assert bk.show.SliceViewer, "the drawing wing loads"
"""

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, alone: Path | None = None) -> str:
    """Run a Python command that sees no other source than ``alone``, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", **({} if alone is None else {"PYTHONPATH": str(alone)})}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(source: Path, folder: Path) -> zipfile.ZipFile:
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, where a build may leave what it likes."""
    copy = tmp_path_factory.mktemp("source") / "blockkit"
    shutil.copytree(ROOT, copy, ignore=LEFT)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_packages_with_their_files_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {"blockkit/py.typed"}
    for name, folder in FOLDERS.items():
        kept = "*" if name == "blockkit_samples" else "*.py"
        expected |= {f"{name.replace('.', '/')}/{path.name}" for path in folder.glob(kept) if path.is_file()}
    static = ROOT / "blockkit" / "show" / "static"
    expected |= {f"blockkit/show/static/{path.name}" for path in static.iterdir() if path.is_file()}
    assert contents(wheel) == expected


def test_the_wheel_carries_the_license_and_the_command(wheel: zipfile.ZipFile) -> None:
    about = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(about["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert b"blockkit = blockkit.cli:main" in wheel.read(about["entry_points.txt"])


def test_the_wheel_works_alone_where_no_source_is(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel.extractall(unpacked)
    run("-c", USE, unpacked, cwd=elsewhere, alone=unpacked)
    sample = unpacked / "blockkit_samples" / "phantom_scan.h5"
    said = run("-m", "blockkit", "info", sample, cwd=elsewhere, alone=unpacked)
    assert "kspace" in said


def test_the_source_archive_builds_the_same_wheel(wheel: zipfile.ZipFile, source: Path, tmp_path: Path) -> None:
    *_, name = run("-c", BUILD_SDIST, tmp_path, cwd=source).split()
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build_wheel(tmp_path / name.removesuffix(".tar.gz"), tmp_path)
    assert contents(again) == contents(wheel)
    assert all(again.read(one) == wheel.read(one) for one in contents(wheel))
