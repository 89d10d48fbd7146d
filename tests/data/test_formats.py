import os

import h5py
import nibabel
import numpy as np
import pytest
import torch

from blockkit.data.formats import ScanFileError, save_nifti
from blockkit.data.scan import Scan, load_scan


def make_scan(reference=True, shape=(3, 4, 5)):
    generator = torch.Generator().manual_seed(1)
    return Scan(
        torch.randn(2, 7, dtype=torch.complex64, generator=generator),
        torch.rand(7, 3, generator=generator) - 0.5,
        torch.randn(2, *shape, dtype=torch.complex64, generator=generator),
        (1.5, 2.0, 2.5),
        reference=torch.randn(shape, dtype=torch.complex64, generator=generator) if reference else None,
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "scan.h5"
    make_scan().save(path)
    return path


@pytest.mark.parametrize("name", ["scan.h5", "a scan with spaces.h5", "Lunge_äöü_肺.h5", "no ending"])
@pytest.mark.parametrize("reference", [True, False])
def test_a_saved_scan_comes_back_bit_for_bit(tmp_path, name, reference):
    scan = make_scan(reference)
    scan.save(tmp_path / name)
    back = load_scan(str(tmp_path / name))
    for field in ("kspace", "trajectory", "maps"):
        assert torch.equal(getattr(back, field), getattr(scan, field))
    assert back.voxel_size == scan.voxel_size
    assert (back.reference is None) == (not reference)
    if reference:
        assert torch.equal(back.reference, scan.reference)
    assert os.listdir(tmp_path) == [name]


def test_conjugated_and_strided_arrays_are_saved_as_they_read(tmp_path):
    scan = make_scan(shape=(4, 4, 4))
    negative = torch.complex(scan.trajectory, scan.trajectory).conj().imag
    assert negative.is_neg()
    odd = Scan(
        scan.kspace.conj(), negative, scan.maps.transpose(1, 3), scan.voxel_size, scan.reference.permute(2, 1, 0)
    )
    odd.save(tmp_path / "odd.h5")
    back = load_scan(tmp_path / "odd.h5")
    assert torch.equal(back.kspace, odd.kspace.resolve_conj())
    assert torch.equal(back.trajectory, -scan.trajectory)
    assert torch.equal(back.maps, odd.maps)
    assert torch.equal(back.reference, odd.reference)


def test_the_file_says_what_its_axes_and_units_are(saved):
    with h5py.File(saved) as file:
        assert file.attrs["format"] == "blockkit-scan"
        assert file.attrs["version"] == 1
        assert list(file.attrs["voxel_size"]) == [1.5, 2.0, 2.5]
        assert {name: file[name].attrs["axes"] for name in file} == {
            "kspace": "coil, sample",
            "trajectory": "sample, kz ky kx",
            "maps": "coil, z, y, x",
            "reference": "z, y, x",
        }
        assert file["trajectory"].attrs["unit"] == "cycles per field of view"


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        make_scan().save(tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no scan file '.*none\.h5'"):
        load_scan(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match="There is no scan file"):
        load_scan(tmp_path)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(saved, part):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ScanFileError, match=r"scan\.h5' is damaged or cut short"):
        load_scan(saved)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + bytes(5000)])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "other.h5").write_bytes(content)
    with pytest.raises(ScanFileError, match="is not an HDF5 file"):
        load_scan(tmp_path / "other.h5")


def replace(file, name, values):
    del file[name]
    file[name] = values


def group_for_kspace(file):
    del file["kspace"]
    file.create_group("kspace")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.attrs.pop("format"), "attribute format is None"),
        (lambda f: f.attrs.__setitem__("format", "other"), r"format is 'other', .*load_ismrmrd"),
        (lambda f: f.attrs.__setitem__("version", 9), "layout version 9, expected 1"),
        (lambda f: f.attrs.pop("voxel_size"), "no attribute voxel_size"),
        (lambda f: f.attrs.__setitem__("version", [1, 2]), "layout version"),
        (lambda f: f.attrs.__setitem__("voxel_size", [1.0, 2.0]), "three positive numbers"),
        (lambda f: f.attrs.__setitem__("voxel_size", "large"), "no attribute voxel_size of three"),
        (lambda f: f.pop("maps"), r"no dataset 'maps'\. It has: kspace, reference, trajectory"),
        (group_for_kspace, "no dataset 'kspace'"),
        (lambda f: [f.pop(name) for name in list(f)], r"no dataset 'kspace'\. It has: none\."),
        (lambda f: f.pop("reference") and f.create_group("reference"), "no dataset 'reference'"),
        (lambda f: replace(f, "reference", np.ones((3, 4, 5), np.float32)), "reference has dtype float32"),
        (lambda f: f.create_dataset("times", (7, 1), np.float32), r"times has shape \(7, 1\), expected \(sample\)"),
        (lambda f: f.attrs.__setitem__("voxel_size", [1.0, np.inf, 1.0]), "three positive numbers"),
        (lambda f: replace(f, "kspace", np.ones((2, 7))), "kspace has dtype float64, expected complex64"),
        (lambda f: replace(f, "maps", np.ones((4, 5), np.complex64)), r"expected \(coil, z, y, x\)"),
        (lambda f: replace(f, "kspace", np.ones((2, 6), np.complex64)), "6 samples, and trajectory 7"),
        (lambda f: replace(f, "trajectory", np.ones((7, 2), np.float32)), r"expected \(sample, 3\)"),
        (lambda f: replace(f, "reference", np.ones((3, 4, 6), np.complex64)), "reference has shape"),
        (lambda f: replace(f, "maps", np.full((2, 3, 4, 5), np.nan, np.complex64)), "maps has 120 values that are NaN"),
        (lambda f: replace(f, "kspace", np.zeros((0, 7), np.complex64)), "0 coils"),
    ],
)
def test_a_file_with_a_wrong_layout_is_refused_with_its_name(saved, damage, message):
    with h5py.File(saved, "r+") as file:
        damage(file)
    with pytest.raises(ScanFileError, match=message) as caught:
        load_scan(saved)
    assert str(saved) in str(caught.value)


def fixed_length(file):
    del file.attrs["format"]
    file.attrs["format"] = np.bytes_(b"blockkit-scan")


def padded_with_spaces(file):
    del file.attrs["format"]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(20)
    kind.set_strpad(h5py.h5t.STR_SPACEPAD)
    attribute = h5py.h5a.create(file.id, b"format", kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(b"blockkit-scan".ljust(20)), mtype=kind)


def arrays_of_one(file):
    file.attrs["format"] = np.array(["blockkit-scan"], dtype=h5py.string_dtype())
    file.attrs["version"] = np.array([1.0])
    file.attrs["voxel_size"] = np.array([[1.5, 2.0, 2.5]])


def big_endian(file):
    for name in list(file):
        values = file[name][()]
        replace(file, name, values.astype(values.dtype.newbyteorder(">")))


@pytest.mark.parametrize("other", [fixed_length, padded_with_spaces, arrays_of_one, big_endian])
def test_a_file_written_in_another_languages_manner_is_read_as_the_same_scan(saved, other):
    with h5py.File(saved, "r+") as file:
        other(file)
    scan, back = make_scan(), load_scan(saved)
    for field in ("kspace", "trajectory", "maps", "reference"):
        assert torch.equal(getattr(back, field), getattr(scan, field))
    assert back.voxel_size == scan.voxel_size


@pytest.mark.parametrize("signature", [b"TREE", b"SNOD", b"HEAP"])
def test_a_damaged_directory_is_one_clear_error(saved, signature):
    content = saved.read_bytes()
    saved.write_bytes(content.replace(signature, b"XXXX"))
    with pytest.raises(ScanFileError, match=r"scan\.h5' is damaged or cut short"):
        load_scan(saved)


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyError, ValueError, TypeError])
def test_whatever_the_reading_of_damaged_bytes_raises_is_one_clear_error(saved, monkeypatch, error):
    def fail(*_):
        raise error("bad symbol table node signature")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(ScanFileError, match=r"scan\.h5' is damaged or cut short .*bad symbol table"):
        load_scan(saved)


def test_a_failed_save_leaves_the_old_file_and_no_trace(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_scan(reference=False).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["scan.h5"]


def test_saving_to_a_folder_or_into_a_missing_one_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        make_scan().save(tmp_path / "none" / "scan.h5")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        make_scan().save(tmp_path)


def test_a_relative_path_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scan().save("here.h5")
    assert load_scan("here.h5").image_shape == (3, 4, 5)


@pytest.mark.parametrize("name", ["image.nii", "ein Bild ü.nii.gz"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 3, 8), (7, 1, 2)])
def test_nifti_keeps_every_voxel_and_its_place(tmp_path, name, shape):
    image = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    save_nifti(tmp_path / name, image, (3.0, 2.0, 1.5))
    back = nibabel.load(tmp_path / name)
    values = np.asarray(back.dataobj)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.transpose(2, 1, 0), image.abs().numpy())
    assert back.header.get_zooms() == (1.5, 2.0, 3.0)
    assert back.header.get_xyzt_units()[0] == "mm"
    center = [n // 2 for n in reversed(shape)]
    np.testing.assert_allclose(back.affine @ [*center, 1], [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(back.affine @ [center[0] + 1, center[1] + 2, center[2] - 1, 1], [-1.5, -4, 3, 1])
    np.testing.assert_allclose(back.get_qform(), back.affine, atol=1e-5)
    assert os.listdir(tmp_path) == [name]


def test_nifti_axes_run_to_the_left_the_back_and_the_feet(tmp_path):
    save_nifti(tmp_path / "a.nii", torch.ones(3, 4, 5, dtype=torch.complex64), (1, 1, 1))
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "a.nii").affine) == ("L", "P", "I")


def test_nifti_can_hold_the_complex_image(tmp_path):
    image = torch.randn(3, 4, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    save_nifti(tmp_path / "c.nii.gz", image.conj(), (1, 1, 1), kind="complex")
    values = np.asarray(nibabel.load(tmp_path / "c.nii.gz").dataobj)
    np.testing.assert_array_equal(values.transpose(2, 1, 0), image.conj().resolve_conj().numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.ones(3, 4, dtype=torch.complex64)}, ValueError, r"pass image\[None\]"),
        ({"image": torch.ones(3, 4, 5)}, TypeError, "expected torch.complex64"),
        ({"image": torch.full((2, 2, 2), torch.nan + 0j)}, ValueError, "NaN"),
        ({"image": np.ones((2, 3, 4), np.complex64)}, TypeError, r"Write torch\.as_tensor\(image\)"),
        ({"voxel_size": (1, 0, 1)}, ValueError, "three positive numbers"),
        ({"voxel_size": (1, 1)}, ValueError, "three positive numbers"),
        ({"voxel_size": (1, 1, float("inf"))}, ValueError, "three positive numbers"),
        ({"voxel_size": "large"}, ValueError, "three positive numbers"),
        ({"kind": "phase"}, ValueError, "expected 'magnitude' or 'complex'"),
        ({"path": "image.png"}, ValueError, r"ends in \.nii or \.nii\.gz"),
        ({"path": "none/a.nii"}, FileNotFoundError, "There is no folder 'none' to write 'a.nii' in. Make it first"),
    ],
)
def test_what_nifti_cannot_hold_is_refused(tmp_path, monkeypatch, change, error, message):
    monkeypatch.chdir(tmp_path)
    good = {"path": "a.nii", "image": torch.ones(2, 3, 4, dtype=torch.complex64), "voxel_size": (1, 1, 1)}
    with pytest.raises(error, match=message):
        save_nifti(**{**good, **change})
    assert os.listdir(tmp_path) == []


def test_a_nifti_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    image, path = torch.ones(2, 3, 4, dtype=torch.complex64), tmp_path / "a.nii"
    save_nifti(path, image, (1, 1, 1))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("nibabel.save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_nifti(path, 2 * image, (1, 1, 1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii"]
