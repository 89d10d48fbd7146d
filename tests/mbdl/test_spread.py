"""One volume on two and on three processes: the image, the gradients and the training of one process."""

import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from blockkit import group
from blockkit.data.formats import read_scan_file
from blockkit.data.scan import load_scan
from blockkit.group import ALONE, Group, join
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.planner import plan
from blockkit.mbdl.unrolled import UnrolledNetwork
from tests.mbdl.small_scans import make_scan
from tests.mbdl.spread_out import CASES, IN_THREE, MODELS, SHAPE, everything

FABRIC = find_spec("lightning_fabric") is not None
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked, which is safe on Linux")
needs_fabric = pytest.mark.skipif(not FABRIC, reason="training on several processes needs the extra scale")
TOLERANCES = {"shared": 5e-6, "kept": 5e-6, "cg": 1e-7}  # single precision; the bound L is always in single precision
NUMBERS = 64  # bytes: single numbers that real tensors bring along and fake ones do not
BY_BLOCKS = [(size, name) for size in (2, 3) for name in (MODELS if size == 2 else IN_THREE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, two and three have written what came of it."""
    place = tmp_path_factory.mktemp("spread")
    make_scan(7, SHAPE).save(place / "scan.h5")
    (place / "1").mkdir()
    command = [sys.executable, "-W", "error", "-m", "tests.mbdl.spread_out", str(place), "fabric" if FABRIC else ""]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    everything(place / "1", FABRIC)
    return place


def tensors(place: Path, size: int, rank: int, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(place / str(size) / f"{rank}.pt")
    return {key: value for key, value in found.items() if key.startswith(f"{name}/")}


def said(place: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "2" / f"{rank}.json").read_text(encoding="utf-8"))
    return found


def check_equal(place: Path, size: int, name: str, tolerance: float) -> None:
    """Check that all processes have what one has, and the same to the bit."""
    expected, first = tensors(place, 1, 0, name), tensors(place, size, 0, name)
    for key, value in expected.items():
        within = min(tolerance, 1e-6) if key.endswith("/image") else tolerance
        assert (first[key] - value).norm() <= within * value.norm(), key
    for rank in range(1, size):
        others = tensors(place, size, rank, name)
        assert others.keys() == expected.keys() == first.keys()
        assert [key for key, value in first.items() if not torch.equal(value, others[key])] == []


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), BY_BLOCKS)
def test_image_and_all_gradients_are_those_of_one_process(size: int, name: str, place: Path) -> None:
    check_equal(place, size, name, TOLERANCES.get(name, 1e-12))
    assert {"image", "b.grad", "start.grad", "step_size.grad", "bound", "dcf", "held out"} <= {
        key.split("/")[1] for key in tensors(place, size, 0, name)
    }


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_process_reads_its_own_coils_alone_and_all_get_the_image(size: int, place: Path) -> None:
    whole, n_coils = load_scan(place / "scan.h5"), []
    for rank in range(size):
        found = tensors(place, size, rank, "file")
        assert found["file/alike"].all()
        n_coils.append(int(found["file/size"][0]))
        for key in ("image", "auto", "sparse", "score"):
            expected = tensors(place, 1, 0, "file")[f"file/{key}"]
            assert (found[f"file/{key}"] - expected).norm() <= 1e-5 * expected.norm(), key
    assert whole.n_coils == 2
    assert n_coils == [1] * size  # the third of three has one of zeros


@needs_fork
@needs_fabric
@pytest.mark.slow
@pytest.mark.parametrize("target", ["reference", "self"])
def test_training_on_parts_of_scans_gives_the_losses_scores_and_weights_of_one_process(
    target: str, place: Path
) -> None:
    check_equal(place, 2, f"fit {target}", tolerance=1e-5)
    found = tensors(place, 2, 0, f"fit {target}")
    assert len(found[f"fit {target}/losses"]) == 4
    assert (len(found[f"fit {target}/skipped"]) > 0) is (target == "self")  # a scan that one process alone cannot read


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_what_each_of_two_processes_takes_to_the_byte(name: str, place: Path) -> None:
    case, taken = CASES[name], []
    for rank in range(2):
        predicted, counted = said(place, rank)["bytes"][name]
        assert abs(predicted - counted) <= NUMBERS
        taken.append(counted)
    if case.n_held_out:
        return  # which plan knows nothing of
    model = UnrolledNetwork(ResidualCNN(5, 3), 2, block_shape=(8, 10, 8))
    sizes = {"n_coils": case.n_coils, "n_samples": case.n_samples, "coils_at_once": case.coils_at_once}
    found = plan(case.image_shape, network=model, budget_gib=1, training=case.training, n_devices=2, **sizes)
    assert abs(found.n_bytes - max(taken)) <= NUMBERS


@needs_fork
@pytest.mark.slow
def test_what_does_not_fit_together_and_what_fails_on_one_is_raised_on_all(place: Path) -> None:
    expected = {
        "unrolls": "ValueError: Process 1 is at n_unrolls=2, block_shape=(8, 8, 8), data_term='density' with",
        "blocks": "ValueError: Process 1 is at n_unrolls=1, block_shape=(5, 5, 5), data_term='density' with",
        "weights": "ValueError: Process 1 has other weights than process 0. Load the same weights file on all",
        "images": "ValueError: Process 1 is at a scan of 400 samples and an image of (8, 8, 10)",
        "scans": "ValueError: Process 1 has other trajectory than process 0. Give all processes parts of one scan.",
        "forward": "MemoryError: no room for it",
        "backward": "MemoryError: no room for it",
        "file": "FileNotFoundError: There is no scan file 'nowhere.h5'",
        "whole": "ValueError: this scan is spread over processes",
        "not spread": "ValueError: scans[0] is spread over processes, expected a whole scan. Write fit(..., spread=Tr",
    }
    for rank in range(2):
        failures = said(place, rank)["failures"]
        assert failures.keys() == expected.keys()
        assert [(name, text) for name, text in failures.items() if not text.startswith(expected[name])] == []


ENDS = """
import sys, torch, blockkit as bk
from blockkit.group import join
from tests.mbdl.small_scans import make_scan
scan = make_scan(0).spread()
if join().rank == 1:
    raise ZeroDivisionError("on one process alone")
bk.UnrolledNetwork(bk.ResidualCNN(2, 2), 1)(scan.encoding(), scan.kspace)
"""


@pytest.mark.slow
def test_a_process_that_ends_takes_the_others_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDS, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: on one process alone" in done.stderr


def test_a_sum_is_there_when_the_library_has_let_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo's thread does so late, one time in ten; else an image would live on into the next step."""
    weight, held = torch.ones(3, requires_grad=True), []

    def late(tensor: Tensor) -> None:
        held.append(weight * tensor)  # whose gradient needs the tensor
        threading.Timer(0.05, held.clear).start()

    monkeypatch.setattr(group.distributed, "all_reduce", late)
    group._add_up(torch.ones(3))
    assert not held


@pytest.mark.parametrize(("n", "size"), [(8, 3), (2, 3), (0, 2), (7, 7), (5, 1)])
def test_shares_are_in_order_without_gap_and_as_even_as_can_be(n: int, size: int) -> None:
    shares = [range(n)[Group(rank, size).share(n)] for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)


def test_of_a_file_only_the_coils_of_the_process_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scan, rows = tmp_path / "scan.h5", make_scan(0), []
    scan.save(path)
    read = h5py.Dataset.__getitem__

    def note(dataset: h5py.Dataset, chosen: Any) -> Any:
        found = read(dataset, chosen)
        rows.extend([len(found)] if dataset.name in ("/kspace", "/maps") else [])
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", note)
    parts = [read_scan_file(path, Group(rank, 3))[0] for rank in range(3)]
    assert rows == [1, 1, 1, 1]
    for name in ("kspace", "maps"):
        whole = getattr(scan, name).numpy()
        assert [np.array_equal(part[name][0], coil) for part, coil in zip(parts, whole, strict=False)] == [True, True]
        assert parts[2][name].shape == (1, *whole.shape[1:])
        assert not parts[2][name].any()
    assert all(np.array_equal(part["reference"], scan.reference) for part in parts)


def test_without_torchrun_a_scan_that_is_spread_is_whole() -> None:
    scan = make_scan(0)
    assert join() is ALONE
    assert scan.spread() is scan


def test_a_plan_for_more_devices_takes_less_on_each_and_says_so() -> None:
    model = UnrolledNetwork(ResidualCNN(4, 3), 1, block_shape=(10, 18, 22))
    sizes = {"n_coils": 9, "n_samples": 900, "network": model, "budget_gib": 1, "training": False}
    plans = [plan((20, 18, 22), n_devices=n, **sizes) for n in (1, 2, 4)]
    assert "device" not in str(plans[0])
    assert str(plans[2]).startswith("on each of 4 devices: blocks of 10 x 18 x 22 voxels, 2 an unroll, ")
    assert str(plans[1]).startswith("on each of 2 devices: ")
    image = 8 * 20 * 18 * 22
    assert [p.parts["maps"] for p in plans] == [9 * image, 5 * image, 3 * image]
    assert plans[0].n_bytes > plans[1].n_bytes > plans[2].n_bytes
    assert {p.parts["images"] for p in plans} == {plans[0].parts["images"]}
    with pytest.raises(ValueError, match="n_devices is 0"):
        plan((20, 18, 22), n_devices=0, **sizes)
