"""Weights files and checkpoints: refused in words if they are not whole, never run, and written where they belong."""

import ast
import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import blockkit
from blockkit.data.scan import Scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, read_tensors, save_weights, write_tensors
from tests.mbdl.small_scans import make_scan

CODE = {"eval", "exec", "compile", "__import__"}
READERS = {"pickle", "marshal", "shelve", "dill", "joblib"}


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan(0)


def make_model(n_channels: int = 4) -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(n_channels, 2), 1)


def test_no_module_runs_what_it_reads() -> None:
    found = {}
    root = Path(blockkit.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                bad = READERS & {name.split(".")[0] for name in names}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                bad = CODE & {node.func.id}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                bad = {"torch.load"} & {f"{node.value.id}.{node.attr}"}
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                bad = set() if isinstance(node.value, ast.Constant) and node.value.value is False else {"allow_pickle"}
            else:
                continue
            if bad:
                found.setdefault(path.relative_to(root).as_posix(), set()).update(bad)
    # a model goes to a Python of our own through a pipe that nobody else writes to
    assert found == {"mbdl/own_process.py": {"pickle"}, "folders/workers.py": {"pickle"}}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_what_is_in_it_does_not_run(tmp_path: Path, scan: Scan) -> None:
    path, mark = tmp_path / "w.safetensors", tmp_path / "was here"
    for write in (lambda: torch.save(Evil(mark), path), lambda: path.write_bytes(pickle.dumps(Evil(mark)))):
        write()
        with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file"):
            load_model(path)
        with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file"):
            fit(make_model(), [scan], n_steps=1, checkpoint=path)
        assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # so it would have run


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, scan: Scan) -> None:
    weights, run = tmp_path / "w.safetensors", tmp_path / "run.safetensors"
    save_weights(make_model(), weights)
    fit(make_model(), [scan], n_steps=1, checkpoint=run)
    for path in (weights, run):
        whole = path.read_bytes()
        for length in {0, 1, 7, 8, 9, 200, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is not a whole safetensors file"):
                load_model(path)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        fit(make_model(), [scan], n_steps=1, checkpoint=run)


def without_history(tensors: dict, metadata: dict) -> None:
    del metadata["history"]


def with_text(tensors: dict, metadata: dict) -> None:
    metadata["history"] = json.dumps({"losses": ["many"], "validation": []})


def with_broken_run(tensors: dict, metadata: dict) -> None:
    metadata["run"] = "{"


def with_other_shape(tensors: dict, metadata: dict) -> None:
    tensors["model.step_size"] = torch.ones(7)


def without_a_weight(tensors: dict, metadata: dict) -> None:
    del tensors["model.step_size"]


def with_other_moments(tensors: dict, metadata: dict) -> None:
    tensors["optimizer.muon.x.y"] = torch.ones(7)


@pytest.mark.parametrize(
    "damage",
    [without_history, with_text, with_broken_run, with_other_shape, without_a_weight, with_other_moments],
)
def test_a_damaged_checkpoint_is_one_error_and_the_model_stays(damage, tmp_path: Path, scan: Scan) -> None:  # type: ignore[no-untyped-def]
    path, model = tmp_path / "run", make_model()
    fit(make_model(), [scan], n_steps=2, checkpoint=path)
    tensors, metadata = read_tensors(path)
    damage(tensors, metadata)
    write_tensors(path, tensors, metadata)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="run is a training checkpoint that is damaged"):
        fit(model, [scan], n_steps=2, checkpoint=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_architecture_and_a_weights_file_are_refused(tmp_path: Path, scan: Scan) -> None:
    path = tmp_path / "run"
    fit(make_model(), [scan], n_steps=1, checkpoint=path)
    assert read_tensors(path)[1]["version"].startswith("blockkit")
    with pytest.raises(ValueError, match=r"belongs to another run: .*written by blockkit"):
        fit(make_model(6), [scan], n_steps=1, checkpoint=path)
    save_weights(make_model(), path)
    with pytest.raises(ValueError, match="is no training checkpoint of this library"):
        fit(make_model(), [scan], n_steps=1, checkpoint=path)


def test_a_checkpoint_of_before_there_were_versions_goes_on(tmp_path: Path, scan: Scan) -> None:
    path, model = tmp_path / "run", make_model()
    fit(make_model(), [scan], n_steps=2, checkpoint=path)
    tensors, metadata = read_tensors(path)
    del metadata["version"]
    history = json.loads(metadata["history"])
    del history["skipped"]
    write_tensors(path, tensors, metadata | {"history": json.dumps(history)})
    assert len(fit(model, [scan], n_steps=2, checkpoint=path).losses) == 2
    assert torch.equal(load_model(path).step_size, model.step_size)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, scan: Scan) -> None:
    place = tmp_path / "on another disk, für Läufe"
    place.mkdir()
    link = tmp_path / "run 1.safetensors"
    link.symlink_to(place / "wirklich.safetensors")  # not there yet
    fit(make_model(), [scan], n_steps=2, checkpoint=link)
    first = link.stat().st_ino
    save_weights(make_model(), link)
    assert link.is_symlink()
    assert link.stat().st_ino != first
    assert [path.name for path in place.iterdir()] == ["wirklich.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.name, link.name]
    load_model(link)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process, without the powers of root, cannot write into."""
    with tempfile.TemporaryDirectory() as name:
        place, user = Path(name), os.geteuid()
        save_weights(make_model(), place / "w.safetensors")
        (place / "w.safetensors").chmod(0o644)
        place.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield place
        finally:
            os.seteuid(user)
            place.chmod(0o755)


def test_a_read_only_folder_is_named_before_the_first_step(read_only: Path, scan: Scan) -> None:
    seen = []
    with pytest.raises(ValueError, match=r"nothing can be written into '.*' \(Permission denied\)"):
        fit(make_model(), [scan], n_steps=1, checkpoint=read_only / "run.safetensors", watch=seen.append)
    assert not seen
    with pytest.raises(PermissionError):
        save_weights(make_model(), read_only / "w.safetensors")
    load_model(read_only / "w.safetensors")


@pytest.mark.parametrize("when", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "w.safetensors"
    save_weights(make_model(), path)
    before = path.read_bytes()
    name = {"write": "blockkit.mbdl.weights.save", "sync": "os.fsync", "rename": "pathlib.Path.replace"}[when]
    monkeypatch.setattr(name, fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_weights(make_model(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
