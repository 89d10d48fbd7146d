"""A folder of scans: lazy, bounded in memory, split by subject, and its bad files found beforehand."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from blockkit.data import folder as folder_module
from blockkit.data import folder_report, heads
from blockkit.data.arrays import load_arrays
from blockkit.data.files import ScanFileError
from blockkit.data.folder import ScanFolder
from blockkit.data.heads import look_through, read_head
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.opening import make_scan, open_scan
from blockkit.data.scan import Scan
from blockkit.physics.channels import prewhiten
from tests.data.raw_scans import SHAPE, VOXEL, make_raw

NAMES = ("ann/a.h5", "ann/b.h5", "bob/a.h5", "cid/deep/a.h5", "cid/b.h5", "dot_1.h5", "dot_2.h5", "eve.h5")


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = make_scan(make_raw(n_spokes=16))
    z, y, x = SHAPE
    reference = torch.ones(z, y, x, dtype=torch.complex64)
    return replace(made, reference=reference)


@pytest.fixture
def folder(scan: Scan, tmp_path: Path) -> Path:
    place = tmp_path / "scans"
    for name in NAMES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        scan.save(place / name)
    return place


def names(folder: ScanFolder) -> list[str]:
    return [path.relative_to(folder.path).as_posix() for path in folder.paths]


def test_a_folder_is_the_sequence_of_its_scans(folder: Path, scan: Scan) -> None:
    (folder / "notes.txt").write_text("no scan")
    (folder / ".hidden.h5").write_text("no scan")
    scans = ScanFolder(folder)
    assert names(scans) == sorted(NAMES)
    assert len(scans) == len(NAMES)
    assert torch.equal(scans[-1].kspace, scan.kspace)
    assert names(scans[2:4]) == sorted(NAMES)[2:4]
    assert len(list(scans)) == len(NAMES)
    with pytest.raises(IndexError):
        scans[len(NAMES)]


def test_nothing_is_read_before_it_is_asked_for_and_what_was_read_last_is_kept(
    folder: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def counted(path: Path) -> Scan:
        read[path.name] += 1
        return scan

    size = folder_module._n_bytes(scan)
    scans = ScanFolder(folder, "d*.h5", load=counted, cache_gib=1.5 * size / 2**30)
    assert not read
    for i in (0, 0, 1, 1, 0):
        scans[i]
        assert scans._n_bytes == size
    assert read == {"dot_1.h5": 2, "dot_2.h5": 1}
    none_fits = ScanFolder(folder, "d*.h5", load=counted, cache_gib=0)
    assert none_fits[0] is scan
    assert none_fits._n_bytes == 0


def test_a_subject_is_the_sub_folder_or_what_the_name_begins_with(folder: Path) -> None:
    assert ScanFolder(folder).subjects == ("ann", "ann", "bob", "cid", "cid", "dot", "dot", "eve")
    assert ScanFolder(folder, "dot*", subject=r"dot_(\d)").subjects == ("1", "2")
    assert ScanFolder(folder, "*/a.h5", subject="[ab]..").subjects == ("ann", "bob")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_no_subject_is_in_both_halves_and_none_is_lost(folder: Path, seed: int, share: float) -> None:
    scans = ScanFolder(folder)
    training, validation = scans.split(share, seed=seed)
    assert set(training.subjects).isdisjoint(validation.subjects)
    assert sorted(names(training) + names(validation)) == names(scans)
    assert len(set(validation.subjects)) == min(4, max(1, round(5 * share)))


def test_the_split_follows_from_seed_and_subjects_alone(folder: Path, scan: Scan) -> None:
    splits = {seed: ScanFolder(folder).split(0.4, seed=seed)[1].subjects for seed in range(8)}
    assert len(set(splits.values())) > 2
    scan.save(folder / "dot_3.h5")
    for seed, subjects in splits.items():
        assert set(ScanFolder(folder).split(validation=0.4, seed=seed)[1].subjects) == set(subjects)


def test_one_subject_cannot_be_split_and_the_message_says_how_to_name_others(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"one subject, 'dot'.*subject=r'scan_"):
        ScanFolder(folder, "dot*").split()
    with pytest.raises(ValueError, match="validation is 1, expected a share"):
        ScanFolder(folder).split(1)
    with pytest.raises(ValueError, match=r"finds no subject in 'eve\.h5'"):
        ScanFolder(folder, subject="ann|bob|cid|dot")
    with pytest.raises(ValueError, match="expected a regular expression"):
        ScanFolder(folder, subject="(")


def test_a_folder_without_scans_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        ScanFolder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"ends in one of \.h5"):
        ScanFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"matches '\*\.mat'"):
        ScanFolder(tmp_path, "*.mat")


def put(path: Path, name: str, value: complex) -> None:
    with h5py.File(path, "r+") as file:
        values = file[name][...]
        values.reshape(-1)[-1] = value
        file[name][...] = values


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]


def shorten(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        points = file["trajectory"][:-3]
        del file["trajectory"]
        file["trajectory"] = points


def zero(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        file[name][...] = 0


def two_coils_more(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        maps = np.concatenate([file["maps"][...]] * 2)
        del file["maps"]
        file["maps"] = maps


FAULTS = {
    "ann/a.h5": (
        lambda path: put(path, "kspace", np.nan),
        r"kspace has 1 values that are NaN.*first at index \(1, 447\)",
    ),
    "ann/b.h5": (cut, "damaged or cut short"),
    "bob/a.h5": (lambda path: drop(path, "maps"), "has no dataset 'maps'"),
    "cid/b.h5": (shorten, "kspace has 448 samples, and trajectory 445"),
    "cid/deep/a.h5": (two_coils_more, "kspace has 2 coils, and maps 4"),
    "dot_1.h5": (lambda path: put(path, "trajectory", 70), r"trajectory reaches \|kx\| = 70"),
    "dot_2.h5": (lambda path: zero(path, "reference"), "reference is zero everywhere"),
}


def test_every_bad_file_is_reported_by_name_and_field_and_can_be_left_out(folder: Path) -> None:
    for name, (spoil, _) in FAULTS.items():
        spoil(folder / name)
    (folder / "text.h5").write_text("no scan")
    report = ScanFolder(folder).check()
    found = {file.path.relative_to(folder).as_posix(): file.problem for file in report.bad}
    assert set(found) == {*FAULTS, "text.h5"}
    for name, (_, expected) in FAULTS.items():
        with pytest.raises(ScanFileError, match=expected):
            ScanFolder(folder, name).check().require()
    assert names(report.good) == ["eve.h5"]
    with pytest.raises(ScanFileError, match="8 of 9 files") as caught:
        report.require()
    assert all(name in str(caught.value) for name in found)
    lines = str(report).splitlines()
    assert len(lines) == 10
    assert "8 bad" in lines[0]
    assert sum("BAD" in line for line in lines) == 8
    assert any(
        "eve.h5" in line and "12 x 10 x 14 voxels, 2 coils, 448 samples, with reference" in line for line in lines
    )
    assert str(folder) not in "".join(lines[1:])


def test_heads_alone_are_enough_for_what_values_are_not_needed_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder / "eve.h5", "kspace", np.inf)
    scans = ScanFolder(folder, "eve.h5")
    assert len(scans.check().bad) == 1
    assert not scans.check(values=False).bad
    monkeypatch.setattr(folder_report, "CHECKED_BYTES", 1000)
    assert "values not looked at" in str(scans.check())
    assert len(scans.check(values=True).bad) == 1


def test_a_head_is_read_without_the_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", never)
    head = read_head(folder / "eve.h5")
    assert (head.image_shape, head.n_coils, head.n_samples, head.voxel_size) == (SHAPE, 2, 448, VOXEL)


@pytest.mark.parametrize("n_bytes", [1, 24, 1000, 5000])
def test_the_first_bad_value_is_found_however_small_the_pieces(
    n_bytes: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(folder / "eve.h5", "r+") as file:
        maps = file["maps"][...]
        maps[1, 3, 2, 1] = maps[1, 4, 0, 0] = np.nan
        file["maps"][...] = maps
    monkeypatch.setattr(heads, "_BYTES_AT_ONCE", n_bytes)
    with pytest.raises(ScanFileError, match=r"maps has 2 values.* first at index \(1, 3, 2, 1\)"):
        look_through(folder / "eve.h5")


def test_a_scan_without_a_reference_is_bad_only_where_one_is_needed(folder: Path) -> None:
    drop(folder / "eve.h5", "reference")
    scans = ScanFolder(folder, "eve.h5")
    assert not scans.check().bad
    (bad,) = scans.check(needs_reference=True).bad
    assert "reference is missing" in str(bad.problem)


def test_raw_files_are_made_scans_of(tmp_path: Path) -> None:
    raw = make_raw(n_spokes=60)
    save_ismrmrd(tmp_path / "ann_1.mrd", raw)
    save_ismrmrd(tmp_path / "bob_1.mrd", replace(raw, maps=None))
    scans = ScanFolder(tmp_path)
    assert not scans.check().bad
    kspace, matrix = prewhiten(raw.kspace, raw.noise)
    given, estimated = scans
    assert torch.equal(given.kspace, kspace)
    torch.testing.assert_close(given.maps, torch.einsum("vc,czyx->vzyx", matrix, raw.maps))
    torch.testing.assert_close(estimated.maps.abs().square().sum(dim=0), torch.ones(SHAPE))
    assert open_scan(tmp_path / "ann_1.mrd", n_coils=1).n_coils == 1


def test_a_raw_file_without_a_trajectory_says_what_to_do(tmp_path: Path) -> None:
    save_ismrmrd(tmp_path / "ann.mrd", make_raw())
    with h5py.File(tmp_path / "ann.mrd", "r+") as file:
        table = file["dataset/data"][...]
        table["head"]["trajectory_dimensions"] = 0
        file["dataset/data"][...] = table
    (bad,) = ScanFolder(tmp_path).check().bad
    assert "trajectory_dimensions is 0" in str(bad.problem)


def test_another_format_is_read_by_a_function_of_ones_own(tmp_path: Path) -> None:
    raw = make_raw(n_spokes=60)
    arrays = {"kspace": "ksp: coil sample", "trajectory": "coord: sample (kz ky kx)", "maps": "b1: coil z y x"}
    np.savez(tmp_path / "ann.npz", ksp=raw.kspace.numpy(), coord=raw.trajectory.numpy(), b1=raw.maps.numpy())
    (tmp_path / "bob.npz").write_bytes(b"no scan")

    def load(path: Path) -> Scan:
        return make_scan(load_arrays(path, arrays, voxel_size=VOXEL))

    scans = ScanFolder(tmp_path, "*.npz", load=load)
    assert torch.equal(scans[0].kspace, raw.kspace)
    (bad,) = scans.check().bad
    assert bad.path.name == "bob.npz"

    def load_all(path: Path) -> object:
        with np.load(path) as file:
            return file

    def load_absent(path: Path) -> object:
        with np.load(path) as file:
            return file["absent"]

    wrong = ScanFolder(tmp_path, "ann.npz", load=load_all)
    with pytest.raises(ScanFileError, match=r"ann\.npz.*load gives a NpzFile"):
        wrong[0]
    assert "load gives a NpzFile" in str(wrong.check())
    (bad,) = ScanFolder(tmp_path, "ann.npz", load=load_absent).check().bad
    assert "absent" in str(bad.problem)


def test_a_format_that_does_not_say_all_is_refused_with_what_to_type(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ksp=np.zeros(3))
    (bad,) = ScanFolder(tmp_path, "*.npz").check().bad
    assert "bk.load_arrays" in str(bad.problem)
    assert "bk.make_scan(raw).save(path)" in str(bad.problem)


@pytest.fixture
def off_resonant(scan: Scan) -> Scan:
    return replace(scan, field_map=torch.zeros(scan.image_shape), times=torch.zeros(scan.kspace.shape[1]))


def test_a_field_map_and_times_stay_with_a_scan_whose_coils_are_compressed(off_resonant: Scan, tmp_path: Path) -> None:
    off_resonant.save(tmp_path / "scan.h5")
    scan = open_scan(tmp_path / "scan.h5", n_coils=2)
    assert scan.n_coils == 2
    assert torch.equal(scan.field_map, off_resonant.field_map)
    assert torch.equal(scan.times, off_resonant.times)
    assert torch.equal(scan.reference, off_resonant.reference)


def test_the_cache_counts_a_field_map_and_times(off_resonant: Scan, tmp_path: Path) -> None:
    off_resonant.save(tmp_path / "scan.h5")
    arrays = [
        getattr(off_resonant, name) for name in ("kspace", "trajectory", "maps", "reference", "field_map", "times")
    ]
    n_bytes = sum(array.nbytes for array in arrays)
    for cache, kept in ((n_bytes, True), (n_bytes - 1, False)):
        folder = ScanFolder(tmp_path, cache_gib=cache / 2**30)
        assert (folder[0] is folder[0]) == kept


def test_a_scan_that_a_function_loads_is_said_to_have_a_field_map(off_resonant: Scan, tmp_path: Path) -> None:
    (tmp_path / "scan.h5").write_text("anything")
    report = ScanFolder(tmp_path, load=lambda path: off_resonant).check()
    assert report.files[0].head.has_field_map


def test_a_scan_with_a_field_map_is_looked_through_and_said_to_have_one(off_resonant: Scan, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    off_resonant.save(path)
    assert read_head(path).has_field_map
    look_through(path)
    with h5py.File(path, "r+") as file:
        file["times"][7] = np.nan
    with pytest.raises(ScanFileError, match=r"times has 1 values that are NaN or infinite, the first at index \(7,\)"):
        look_through(path)
