"""A folder of scans becomes a folder of images, whatever happens on the way, and nothing is done twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.folder import ScanFolder
from blockkit.data.formats import save_nifti
from blockkit.data.scan import load_scan
from blockkit.folders import claims, folder_recon, one_scan
from blockkit.folders.claims import Claims
from blockkit.folders.folder_recon import reconstruct_folder
from blockkit.folders.image_records import describe_method
from blockkit.folders.scan_queue import ScanResult
from blockkit.mbdl import room
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.sense import Encoding
from tests.mbdl.small_scans import make_scan

SCANS = [make_scan(seed) for seed in range(3)]
NAMES = ("ann_1.h5", "sub folder/ann_1.h5", "sub folder/ann_1.mrd.h5", "肺.hdf5")


def gridding(A: Encoding, kspace: Tensor) -> Tensor:
    return A.adjoint(A.dcf * kspace)


def killing(A: Encoding, kspace: Tensor, *, once: str) -> Tensor:
    """Gridding, in a process that is killed at the scan with the first seed, and once at that with the second."""
    is_first = torch.equal(kspace, SCANS[1].kspace) and not Path(once).exists()
    if is_first or torch.equal(kspace, SCANS[0].kspace):
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return gridding(A, kspace)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans" / "sub folder").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        SCANS[number % 3].save(tmp_path / "scans" / name)
    return tmp_path / "scans"


def make_model() -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(4, 2), 1, block_shape=(8, 8, 4))


def image_at(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def files_below(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def watched() -> tuple[list[ScanResult], Callable[[ScanResult], None]]:
    seen: list[ScanResult] = []
    return seen, seen.append


def leave(folder: Path, n: int) -> None:
    for name in NAMES[n:]:
        (folder / name).unlink()


def expected_files(*names: str) -> set[str]:
    return {name + ending for name in names for ending in (".nii.gz", ".json")}


def spoil(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][...]
        kspace.reshape(-1)[5] = np.nan
        file["kspace"][...] = kspace


def test_each_scan_gets_an_image_of_its_own_with_the_bits_of_a_single_one(folder: Path, tmp_path: Path) -> None:
    output, model = folder / "images", make_model()
    (tmp_path / "elsewhere.h5").write_bytes((folder / NAMES[0]).read_bytes())
    (folder / "link.h5").symlink_to(tmp_path / "elsewhere.h5")
    seen, watch = watched()
    result = reconstruct_folder(folder, output, model, watch=watch)
    assert files_below(output) == expected_files(*NAMES, "link.h5")
    assert {path.relative_to(folder).as_posix() for path in result.images} == {*NAMES, "link.h5"}
    assert [(one.n_ended, one.n_scans) for one in seen] == [(i, 5) for i in range(1, 6)]
    for number, name in enumerate(NAMES):
        scan = load_scan(folder / name)
        with torch.no_grad():
            save_nifti(tmp_path / "single.nii.gz", model(scan.encoding(), scan.kspace), scan.voxel_size)
        assert np.array_equal(image_at(output / f"{name}.nii.gz"), image_at(tmp_path / "single.nii.gz")), number
    record = json.loads((output / "ann_1.h5.json").read_text())
    assert record["made_from"]["method"]["weights"] == describe_method(model)["weights"]
    assert record["made_by"]["block_shape"] == [8, 8, 4]


def test_what_is_done_is_not_done_again_and_images_within_the_folder_are_no_scans(folder: Path) -> None:
    output = folder / "images"
    everything = ScanFolder(folder, "**/*")
    assert len(reconstruct_folder(everything, output, gridding).images) == 4
    (output / "copy.h5").write_bytes((folder / NAMES[0]).read_bytes())
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    seen, watch = watched()
    result = reconstruct_folder(ScanFolder(folder, "**/*"), output, gridding, watch=watch)
    assert str(result) == f"4 of 4 scans have their images in '{output}': 0 new"
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    (output / f"{NAMES[0]}.nii.gz").write_bytes(b"cut short")
    (output / f"{NAMES[1]}.json").write_text('{"format": "blockk')
    (output / f"{NAMES[2]}.nii.gz").unlink()
    assert reconstruct_folder(everything, output, gridding).n_new == 3


def test_images_made_otherwise_are_named_with_what_differs_and_replaced_only_if_asked(
    folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "images"
    leave(folder, 2)
    few = partial(compressed_sensing, n_iterations=2, wavelet="haar")
    reconstruct_folder(folder, output, few)
    model = make_model()
    for method, what in (
        (partial(compressed_sensing, n_iterations=3, wavelet="haar"), "method: n_iterations was 2, is 3"),
        (model, r"name was .*, is null.* weights was null, is \"[0-9a-f]+\.\.\."),
    ):
        with pytest.raises(ValueError, match=rf"2 images made from something else: ann_1\.h5 \(.*{what}.*again=True"):
            reconstruct_folder(folder, output, method)
    assert reconstruct_folder(folder, output, model, again=True).n_new == 2
    model.block_shape = None  # memory, not the image
    assert reconstruct_folder(folder, output, model).n_new == 0
    model.step_size.data[0] = 2.0
    with pytest.raises(ValueError, match=r"\(method: weights was"):
        reconstruct_folder(folder, output, model)
    model.step_size.data[0] = 1.0
    SCANS[1].save(folder / NAMES[0])
    with pytest.raises(ValueError, match=r"1 image made from .*: ann_1\.h5 \(scan: ann_1\.h5 was \[\d+, \d+"):
        reconstruct_folder(folder, output, model)
    assert reconstruct_folder(folder, output, model, again=True).n_new == 1


def test_a_bad_scan_does_not_stop_the_others_and_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, model = tmp_path / "images", make_model()
    (folder / NAMES[0]).write_text("no scan")
    spoil(folder / NAMES[1])
    make_scan(0, (16, 16, 16)).save(folder / NAMES[2])
    check = one_scan.check_room

    def check_large(model, scan, **options):  # type: ignore[no-untyped-def]
        if scan.image_shape == (16, 16, 16):
            raise room.NoRoomError("takes 9 GiB")
        check(model, scan, **options)

    monkeypatch.setattr(one_scan, "check_room", check_large)
    result = reconstruct_folder(folder, output, model)
    assert set(result.images) == {folder / NAMES[3]}
    assert "is not an HDF5 file" in result.problems[folder / NAMES[0]]
    assert "NaN" in result.problems[folder / NAMES[1]]
    assert result.problems[folder / NAMES[2]] == "takes 9 GiB"
    assert files_below(output) == expected_files(NAMES[3]) | {f"{name}.json" for name in NAMES[:3]}
    assert "NaN" in json.loads((output / f"{NAMES[1]}.json").read_text())["problem"]
    assert "[1 of 4] ann_1.h5: failed: " in capsys.readouterr().out
    assert "3 failed; the same again tries them anew:" in str(result)
    SCANS[0].save(folder / NAMES[1])
    result = reconstruct_folder(folder, output, model)
    assert set(result.images) == {folder / NAMES[3], folder / NAMES[1]}
    assert "1 new" in str(result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_a_word_and_the_next_call_goes_on(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "images"

    def stop(one: ScanResult) -> None:
        if one.n_ended == 2:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match="stopped: 2 of 4 scans done"):
        reconstruct_folder(folder, output, gridding, watch=stop)
    assert len(files_below(output)) == 4
    assert reconstruct_folder(folder, output, gridding).n_new == 2
    assert files_below(output) == expected_files(*NAMES)


def test_a_write_that_is_cut_off_leaves_no_image_and_what_it_left_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "images"
    leave(folder, 1)

    def cut_off(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one_scan, "_bring_to_disk", cut_off)
        with pytest.raises(KeyboardInterrupt, match="stopped: 0 of 1 scan "):
            reconstruct_folder(folder, output, gridding)
    assert files_below(output) == set()
    left = output / ".ann_1.h5.part"  # as a kill leaves it
    left.mkdir()
    (left / "ann_1.h5.nii.gz").write_bytes(b"half")
    reconstruct_folder(folder, output, gridding)
    assert files_below(output) == expected_files(NAMES[0])
    assert not left.exists()
    left.mkdir()  # as a kill leaves it after the record was written
    (output / ".ann_1.h5.claim").write_text(
        json.dumps({"host": claims.socket.gethostname(), "pid": 2**30, "born": "1"})
    )
    assert reconstruct_folder(folder, output, gridding).n_new == 0
    assert files_below(output) == expected_files(NAMES[0])
    assert not left.exists()


def test_a_scan_that_another_process_has_is_waited_for_and_taken_over_when_it_dies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "images"
    output.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim = {"host": claims.socket.gethostname(), "pid": other.pid, "born": claims._born(other.pid), "key": "other"}
    (output / ".ann_1.h5.claim").write_text(json.dumps(claim))
    seen, watch = watched()

    def sleep(seconds: float) -> None:
        other.kill()
        other.wait()

    monkeypatch.setattr(folder_recon.time, "sleep", sleep)
    leave(folder, 2)
    reconstruct_folder(folder, output, gridding, watch=watch)
    other.stdin.close()
    assert [one.name for one in seen] == [NAMES[1], NAMES[0]]
    assert f"Waiting for ann_1.h5: process {other.pid} on" in capsys.readouterr().err
    assert files_below(output) == expected_files(*NAMES[:2])


def test_scans_that_another_process_ends_meanwhile_are_not_done_twice(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "images"
    (folder / NAMES[3]).write_text("no scan")
    seen, watch = watched()

    def all_at_once(one: ScanResult) -> None:
        watch(one)
        if len(seen) == 1:
            reconstruct_folder(folder, output, gridding, watch=lambda one: None)

    result = reconstruct_folder(folder, output, gridding, watch=all_at_once)
    assert [one.seconds is None for one in seen] == [False, True, True, True]
    assert len(result.images) == 3
    assert "is not an HDF5 file" in result.problems[folder / NAMES[3]]
    assert result.n_new == 1


def test_a_claim_of_another_machine_is_free_when_its_time_has_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / ".claim", [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    path.write_text(json.dumps({"host": "far", "pid": 7, "born": "1", "key": "k"}))
    with Claims() as mine:
        assert not mine.take(path)
        now[0] = claims.LEASE_SECONDS - 1
        os.utime(path, ns=(1, 1))  # a sign of life
        assert mine.owner(path) == "process 7 on far"
        now[0] = 2 * claims.LEASE_SECONDS - 2
        assert not mine.take(path)
        now[0] = 2 * claims.LEASE_SECONDS
        assert mine.take(path)
        assert mine.owner(path) == "this process"
        with Claims() as others:
            assert not others.take(path)
    assert not path.exists()


def test_what_cannot_be_is_said_before_anything_is_done(folder: Path, tmp_path: Path) -> None:
    for output, method, options, error, said in (
        (folder, gridding, {}, ValueError, "is the folder of the scans"),
        (folder / NAMES[0], gridding, {}, ValueError, "is a file"),
        (tmp_path / "a.nii.gz", gridding, {}, ValueError, "is the name of an image"),
        (tmp_path / "a" / "b", gridding, {}, FileNotFoundError, "Make it first"),
        (tmp_path / "a", gridding, {"workers": 0}, ValueError, "workers is 0"),
        (tmp_path / "a", gridding, {"workers": ["cuda:0", "cuda:0"]}, ValueError, "no GPU twice"),
        (tmp_path / "a", lambda A, kspace: kspace, {}, TypeError, "has no name to remember it by"),
        (tmp_path / "a", partial(gridding, option=object()), {}, TypeError, "has no name"),
    ):
        with pytest.raises(error, match=said):
            reconstruct_folder(folder, output, method, **options)
    assert not (tmp_path / "a").exists()


def test_workers_share_the_scans_and_one_that_is_killed_costs_its_scan_at_most(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "images"
    replace(SCANS[1], kspace=2 * SCANS[1].kspace).save(folder / NAMES[3])
    result = reconstruct_folder(folder, output, partial(killing, once=str(tmp_path / "once")), workers=2)
    assert result.problems == {
        folder / NAMES[0]: "its process was ended by SIGKILL, as happens where memory runs out or a library fails"
    }
    assert files_below(output) == expected_files(*NAMES[1:]) | {f"{NAMES[0]}.json"}
    for name in NAMES[1:]:
        scan = load_scan(folder / name)
        save_nifti(tmp_path / "single.nii.gz", gridding(scan.encoding(), scan.kspace), scan.voxel_size)
        assert np.array_equal(image_at(output / f"{name}.nii.gz"), image_at(tmp_path / "single.nii.gz"))


SCRIPT = """
import sys, torch
import blockkit as bk
torch.set_num_threads(1)
print(bk.reconstruct_folder(sys.argv[1], sys.argv[2], bk.pretrained(), workers=int(sys.argv[3])))
"""


@pytest.mark.long
def test_a_script_that_workers_would_run_again_is_told_what_to_write(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / "images"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def n_records(output: Path) -> int:
    return len(list(output.rglob("*.json")))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_at_any_moment_leaves_no_process_and_no_half_image_and_is_repeated(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    for copy in range(4):
        SCANS[copy % 3].save(folder / f"copy_{copy}.h5")
    output, n_scans, draw = tmp_path / "images", 8, random.Random(number)
    command = [sys.executable, "-m", "blockkit", "recon", str(folder), "-o", str(output), "--workers", "2"]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = n_records(output)
        while process.poll() is None and n_records(output) == before and draw.random() < 0.99:
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 0.5))
        children = children_of(process.pid) if process.poll() is None else []
        process.send_signal(number)
        assert process.wait(20) in (0, 130, -number)
        until = time.monotonic() + 10
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < until, "a process is left"
            time.sleep(0.1)
        images = [path for path in output.rglob("*.nii.gz") if ".part" not in str(path)]
        assert all(np.isfinite(image_at(path)).all() for path in images)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{n_scans} of {n_scans} scans have their images" in done.stdout
    assert len(files_below(output)) == 2 * n_scans
