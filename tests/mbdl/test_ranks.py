"""Two processes train as one does that takes the scans of both in each step, and stop together."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.prepared import BadScanError, PreparedScans
from blockkit.mbdl.progress import History, Progress
from blockkit.mbdl.ranks import Ranks, n_sharing
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import read_tensors, write_tensors
from tests.mbdl.ranked import train
from tests.mbdl.small_scans import make_scan

SCANS = [make_scan(seed) for seed in range(3)]
CPU = torch.device("cpu")
needs_fabric = pytest.mark.skipif(
    find_spec("lightning_fabric") is None, reason="several processes need lightning-fabric, the extra scale"
)
TWO_A_STEP = ("plain", "resumed", "skipping", "bad")
CASES: dict[str, dict[str, Any]] = {
    "plain": {"n_steps": 4},
    "four": {"n_steps": 2, "scans_per_step": 4, "target": "self"},
    "stopped": {"n_steps": 5, "harm": "signal", "checkpoint": "run"},
    "resumed": {"n_steps": 5, "checkpoint": "run"},
    "skipping": {"n_steps": 4, "harm": "bad", "skip_bad": True},
    "bad": {"n_steps": 4, "harm": "bad"},
    "alone": {"n_steps": 4, "harm": "error"},
    "unlike": {"n_steps": 1, "harm": "arguments"},
    "uneven": {"n_steps": 1, "scans_per_step": 3},
}

Said = dict[str, Any]


def make_model() -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(4, 2), 1)


def found(place: Path, case: str, rank: int = 0) -> tuple[Said, dict[str, Tensor]]:
    said = json.loads((place / f"{case}.{rank}.json").read_text(encoding="utf-8"))
    return said, read_tensors(place / f"{case}.{rank}.safetensors")[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, one case after another."""
    place = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.mbdl.ranked", str(place), json.dumps(in_place(place))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process wrote that takes the scans of both, where Lightning Fabric cannot be imported."""
    place = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lightning_fabric", None)
        for case in (*TWO_A_STEP, "four"):
            train(place, case, **{"scans_per_step": 2} | in_place(place)[case])
    return place


def in_place(place: Path) -> dict[str, dict[str, Any]]:
    return {
        case: {name: str(place / value) if name == "checkpoint" else value for name, value in options.items()}
        for case, options in CASES.items()
    }


@needs_fabric
@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "four", "resumed", "skipping"])
def test_two_processes_have_the_losses_scores_gradients_and_weights_of_one(case: str, one: Path, two: Path) -> None:
    expected, tensors = found(one, case)
    assert len(expected["losses"]) == CASES[case]["n_steps"]
    assert any(name.endswith(".grad") for name in tensors)
    for rank in range(2):
        said, others = found(two, case, rank)
        assert said["losses"] == pytest.approx(expected["losses"], rel=1e-6)
        assert [step for step, _ in said["validation"]] == [step for step, _ in expected["validation"]]
        assert [v for _, v in said["validation"]] == pytest.approx([v for _, v in expected["validation"]], rel=1e-6)
        assert said["skipped"] == expected["skipped"]
        assert others.keys() == tensors.keys()
        for name, value in tensors.items():
            assert (others[name] - value).norm() <= 1e-6 * value.norm(), name


@needs_fabric
@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step_with_a_whole_checkpoint(two: Path) -> None:
    for rank in range(2):
        said, _ = found(two, "stopped", rank)
        assert said["interrupted"]
        assert len(said["losses"]) == said["saved"] == 2
        assert not found(two, "resumed", rank)[0]["interrupted"]


@needs_fabric
@pytest.mark.slow
def test_the_first_process_alone_shows_how_the_run_stands_and_warns(one: Path, two: Path) -> None:
    for case in ("plain", "skipping"):
        (first, _), (second, _), (alone, _) = found(two, case), found(two, case, 1), found(one, case)
        assert first["told"] == alone["told"]
        assert first["warned"] == alone["warned"]
        assert second["told"] == second["warned"] == []
    assert all("scans[2] cannot be read: a bad sector" in warning for warning in first["warned"])
    assert first["warned"]


@needs_fabric
@pytest.mark.slow
def test_what_stops_one_process_stops_both_and_is_named(one: Path, two: Path) -> None:
    for rank in range(2):
        assert found(two, "bad", rank)[0]["error"] == found(one, "bad")[0]["error"]
        assert found(two, "bad", rank)[0]["error"] == "BadScanError: scans[2] cannot be read: a bad sector"
        assert found(two, "alone", rank)[0]["error"] == "ZeroDivisionError: on one process alone"
        assert "ValueError: Process 1 begins with" in found(two, "unlike", rank)[0]["error"]
        assert "expected a multiple of the number of processes, 2" in found(two, "uneven", rank)[0]["error"]


def test_a_step_on_one_scan_twice_is_a_step_on_it() -> None:
    once, twice = make_model(), make_model()
    assert fit(once, SCANS[:1], n_steps=3) == fit(twice, SCANS[:1], n_steps=3, scans_per_step=2)
    for value, other in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(value, other)


def test_the_loss_of_a_step_is_the_mean_of_those_of_its_scans() -> None:
    singly = [fit(make_model(), [scan], n_steps=1).losses[0] for scan in SCANS]
    assert fit(make_model(), SCANS, n_steps=1, scans_per_step=3).losses == pytest.approx([sum(singly) / 3], rel=1e-6)


def test_a_pass_that_ends_within_a_step_is_validated_after_it() -> None:
    history = fit(make_model(), SCANS, validation=SCANS[:1], n_steps=7, scans_per_step=2)
    assert [step for step, _ in history.validation] == [2, 3, 5, 6, 7]


class SomeBroken(list[Any]):
    """Scans, the first ``n`` of which cannot be read."""

    def __init__(self, n: int) -> None:
        super().__init__([*SCANS, make_scan(3)])
        self.n = n

    def __getitem__(self, i: Any) -> Any:
        if i < self.n:
            raise OSError("broken")
        return super().__getitem__(i)


@pytest.mark.filterwarnings("ignore:Passed over:RuntimeWarning")  # of the broken scans that are meant here
@pytest.mark.parametrize("n_bad", [1, 2])
def test_a_step_averages_over_its_good_scans_and_a_resumed_run_is_where_it_was(n_bad: int, tmp_path: Path) -> None:
    def run(stop_after: int | None = None) -> History:
        def watch(progress: Progress) -> None:
            if progress.step == stop_after and not progress.ended:
                raise RuntimeError("cut off")

        path = None if stop_after is None else tmp_path / "run"
        options = {"n_steps": 6, "scans_per_step": 2, "skip_bad": True, "augment": True, "deterministic": True}
        return fit(make_model(), SomeBroken(n_bad), checkpoint=path, watch=watch, **options)

    expected = run()
    assert len(expected.losses) == 6
    n_a_step = Counter(step for step, _ in expected.skipped)
    n_passes = (6 + sum(n // 2 for n in n_a_step.values())) / 2  # of four scans, two a step, and those with no good one
    assert abs(len(expected.skipped) - n_bad * n_passes) < n_bad
    assert (max(n_a_step.values()) > 1) is (n_bad > 1)
    for stop_after in (1, 2, 4):
        with pytest.raises(RuntimeError, match="cut off"):
            run(stop_after)
    assert run(stop_after=7) == expected


@pytest.mark.filterwarnings("ignore:Passed over:RuntimeWarning")  # of the broken scans that are meant here
def test_if_no_scan_of_a_pass_is_good_the_run_stops() -> None:
    with pytest.raises(BadScanError, match=r"scans\[\d\] cannot be read: broken"):
        fit(make_model(), SomeBroken(4), n_steps=6, scans_per_step=2, skip_bad=True)


def test_a_checkpoint_goes_on_with_as_many_scans_a_step_and_an_older_one_with_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    fit(make_model(), SCANS, n_steps=2, scans_per_step=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"'scans_per_step': 3.*'scans_per_step': 1"):
        fit(make_model(), SCANS, n_steps=2, checkpoint=path)
    path.unlink()
    expected = fit(make_model(), SCANS, n_steps=2, checkpoint=path)
    tensors, metadata = read_tensors(path)
    identity = json.loads(metadata["run"])
    del identity["scans_per_step"]
    write_tensors(path, tensors, metadata | {"run": json.dumps(identity)})
    assert fit(make_model(), SCANS, n_steps=2, checkpoint=path) == expected


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
def test_several_processes_without_fabric_are_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"pip install 'blockkit\[scale\]'"):
        fit(make_model(), SCANS, n_steps=1)


@pytest.mark.usefixtures("second_of_two")
def test_two_processes_on_one_gpu_are_told_to_take_one_each() -> None:
    with pytest.raises(ValueError, match=r'model is on cuda:0, .* process 1 of 2 .*f"cuda:\{os\.environ'):
        Ranks(torch.device("cuda:0"))


def test_the_processes_of_a_machine_share_its_memory(request: pytest.FixtureRequest) -> None:
    alone = PreparedScans("scans", SCANS, make_model()).most_bytes
    assert n_sharing(CPU) == 1
    request.getfixturevalue("second_of_two")
    assert PreparedScans("scans", SCANS, make_model()).most_bytes == alone / 2
    assert n_sharing(torch.device("cuda:1")) == 1
