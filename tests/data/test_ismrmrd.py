import dataclasses
import os

import h5py
import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest
import torch
from raw_scans import SHAPE, VOXEL, assert_same, make_raw

from blockkit.data import ismrmrd_write
from blockkit.data.files import ScanFileError
from blockkit.data.ismrmrd import load_ismrmrd
from blockkit.data.ismrmrd_header import HEAD
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.scan import Scan


@pytest.fixture(scope="module")
def raw():
    return make_raw()


@pytest.fixture
def saved(raw, tmp_path):
    save_ismrmrd(tmp_path / "scan.mrd", raw)
    return tmp_path / "scan.mrd"


def make_xml(encoded=(14, 10, 12), recon=(14, 10, 12), fov=(35.0, 20.0, 18.0), recon_fov=None, trajectory="radial"):
    """A header in the words of the reference library; sizes are (x, y, z) there."""
    xsd = ismrmrd.xsd
    encoded_space, recon_space = (
        xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(**dict(zip("xyz", matrix, strict=True))),
            fieldOfView_mm=xsd.fieldOfViewMm(**dict(zip("xyz", extent, strict=True))),
        )
        for matrix, extent in ((encoded, fov), (recon, recon_fov or fov))
    )
    encoding = xsd.encodingType(
        encodedSpace=encoded_space,
        reconSpace=recon_space,
        encodingLimits=xsd.encodingLimitsType(),
        trajectory=xsd.trajectoryType(trajectory),
    )
    conditions = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63500000)
    return xsd.ToXML(xsd.ismrmrdHeader(experimentalConditions=conditions, encoding=[encoding]))


def write_by_the_library(path, raw, *, points=None, xml=None, change=lambda number, acquisition: None):
    """Write a scan as the reference library does, spoke by spoke, after two noise scans."""
    n = raw.n_readout
    spokes = raw.kspace.reshape(raw.n_coils, -1, n).numpy()
    points = raw.trajectory.flip(1).numpy() if points is None else points
    points = points.reshape(spokes.shape[1], n, -1)
    with ismrmrd.Dataset(path, "dataset", mode="w") as dataset:
        dataset.write_xml_header(make_xml() if xml is None else xml)
        for part in np.split(raw.noise.numpy(), 2, axis=1):
            noise = ismrmrd.Acquisition.from_array(np.ascontiguousarray(part))
            noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
            dataset.append_acquisition(noise)
        for number in range(spokes.shape[1]):
            spoke = np.ascontiguousarray(spokes[:, number])
            trajectory = np.ascontiguousarray(points[number]) if points.shape[2] else None
            acquisition = ismrmrd.Acquisition.from_array(spoke, trajectory)
            change(number, acquisition)
            dataset.append_acquisition(acquisition)
    return path


def test_a_saved_scan_comes_back_bit_for_bit(raw, saved):
    assert_same(load_ismrmrd(saved), raw, rounding=2e-6)
    assert os.listdir(saved.parent) == ["scan.mrd"]


def test_the_reference_library_reads_what_is_written(raw, saved):
    with ismrmrd.Dataset(saved, mode="r") as dataset:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        (encoding,) = header.encoding
        matrix, fov = encoding.encodedSpace.matrixSize, encoding.reconSpace.fieldOfView_mm
        assert (matrix.z, matrix.y, matrix.x) == SHAPE
        assert (fov.z, fov.y, fov.x) == raw.fov
        assert encoding.trajectoryDescription.userParameterString[0].value == "cycles/FOV"
        assert dataset.number_of_acquisitions() == 13
        noise, spokes = dataset.read_acquisition(0), [dataset.read_acquisition(i) for i in range(1, 13)]
        assert noise.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        np.testing.assert_array_equal(noise.data, raw.noise)
        np.testing.assert_array_equal(np.concatenate([s.data for s in spokes], axis=1), raw.kspace)
        np.testing.assert_array_equal(np.concatenate([s.traj for s in spokes]), raw.trajectory.flip(1))
        assert not any(s.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for s in spokes)
        np.testing.assert_array_equal(dataset.read_array("csm", 0), raw.maps)


def test_what_the_reference_library_writes_is_read(raw, tmp_path):
    path = write_by_the_library(tmp_path / "a.h5", raw)
    back = load_ismrmrd(path)
    assert back.maps is None
    assert torch.equal(back.kspace, raw.kspace)
    assert torch.equal(back.noise, raw.noise)
    torch.testing.assert_close(back.trajectory, raw.trajectory)
    assert (back.image_shape, back.n_readout) == (SHAPE, 28)
    assert back.voxel_size == pytest.approx(VOXEL)


def test_the_layout_of_a_head_is_the_reference_librarys():
    assert ismrmrd.hdf5.acquisition_header_dtype == HEAD


def test_a_slice_is_a_volume_one_voxel_thick(tmp_path):
    flat = make_raw(shape=(1, 12, 16))
    save_ismrmrd(tmp_path / "a.h5", flat)
    assert_same(load_ismrmrd(tmp_path / "a.h5"), flat, rounding=2e-6)
    xml = make_xml((16, 12, 1), (16, 12, 1), (40.0, 24.0, 1.5))
    points = flat.trajectory.flip(1)[:, :2].numpy()
    back = load_ismrmrd(write_by_the_library(tmp_path / "b.h5", flat, points=points, xml=xml))
    torch.testing.assert_close(back.trajectory, flat.trajectory)
    assert back.image_shape == (1, 12, 16)


def test_density_weights_in_the_third_column_are_named_and_can_be_left_out(tmp_path):
    flat = make_raw(shape=(1, 12, 16))
    points = flat.trajectory.flip(1).numpy().copy()
    points[:, 2] = 0.1 + np.linalg.norm(points, axis=1)
    path = write_by_the_library(tmp_path / "b.h5", flat, points=points, xml=make_xml((16, 12, 1), (16, 12, 1)))
    with pytest.raises(ScanFileError, match=r"b\.h5': .*density weights, name it -, as in 'kx ky -'"):
        load_ismrmrd(path)
    torch.testing.assert_close(load_ismrmrd(path, columns="kx ky -").trajectory, flat.trajectory)


@pytest.mark.parametrize(("unit", "factor"), [("cycles/voxel", 1), ("radians/voxel", 2 * np.pi)])
def test_a_unit_per_voxel_is_named_and_is_one_of_the_encoded_matrix(raw, tmp_path, unit, factor):
    points = (raw.trajectory / torch.tensor(SHAPE) * factor).flip(1).numpy()
    path = write_by_the_library(tmp_path / "a.h5", raw, points=points)
    with pytest.raises(ScanFileError, match=f"looks like {unit}: write unit='{unit}'"):
        load_ismrmrd(path)
    torch.testing.assert_close(load_ismrmrd(path, unit=unit).trajectory, raw.trajectory)


def test_an_oversampled_field_of_view_changes_the_unit_of_k(raw, tmp_path):
    points = (2 * raw.trajectory).flip(1).numpy()  # in cycles per encoded field of view, twice as wide
    fov = (35.0, 20.0, 18.0)
    xml = make_xml((28, 20, 24), (14, 10, 12), tuple(2 * f for f in fov), fov)
    back = load_ismrmrd(write_by_the_library(tmp_path / "a.h5", raw, points=points, xml=xml))
    torch.testing.assert_close(back.trajectory, raw.trajectory)
    assert back.image_shape == SHAPE
    assert back.voxel_size == pytest.approx(VOXEL)


def test_the_image_shape_can_be_given_over_the_same_field_of_view(raw, saved):
    back = load_ismrmrd(saved, image_shape=(24, 20, 28))
    assert back.voxel_size == pytest.approx([size / 2 for size in VOXEL])
    assert back.maps is None
    torch.testing.assert_close(back.trajectory, raw.trajectory)
    with pytest.raises(ScanFileError, match="needs image_shape"):
        load_ismrmrd(saved, image_shape=(8, 10, 14))


def test_a_trajectory_can_be_given(raw, tmp_path):
    path = write_by_the_library(tmp_path / "a.h5", raw, points=np.empty((raw.n_samples, 0), np.float32))
    with pytest.raises(ScanFileError, match=r"hold no trajectory: trajectory_dimensions is 0\. Pass trajectory="):
        load_ismrmrd(path)
    assert torch.equal(load_ismrmrd(path, trajectory=raw.trajectory).trajectory, raw.trajectory)
    with pytest.raises(ScanFileError, match=r"trajectory has shape \(9, 3\), expected \(336, 3\)"):
        load_ismrmrd(path, trajectory=raw.trajectory[:9])
    with pytest.raises(ScanFileError, match="looks like cycles/voxel"):
        load_ismrmrd(path, trajectory=raw.trajectory / torch.tensor(SHAPE))


def test_samples_to_discard_are(raw, tmp_path):
    def discard(_, acquisition):
        acquisition.discard_pre, acquisition.discard_post = 3, 1

    back = load_ismrmrd(write_by_the_library(tmp_path / "a.h5", raw, change=discard))
    assert back.n_readout == 24
    assert torch.equal(back.kspace, raw.kspace.reshape(2, 12, 28)[:, :, 3:-1].reshape(2, -1))
    assert torch.equal(back.trajectory, raw.trajectory.reshape(12, 28, 3)[:, 3:-1].reshape(-1, 3))


def test_what_is_not_part_of_the_image_is_left_out(raw, tmp_path):
    def navigate(number, acquisition):
        if number % 3 == 0:
            acquisition.set_flag((ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_DUMMYSCAN_DATA)[number % 2])
        if number == 1:
            acquisition.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)

    back = load_ismrmrd(write_by_the_library(tmp_path / "a.h5", raw, change=navigate))
    kept = [number for number in range(12) if number % 3]
    assert torch.equal(back.kspace, raw.kspace.reshape(2, 12, 28)[:, kept].reshape(2, -1))


def test_several_images_in_a_file_are_named_and_one_is_chosen(raw, tmp_path):
    def count(number, acquisition):
        acquisition.idx.contrast = number % 2
        acquisition.idx.average = number

    path = write_by_the_library(tmp_path / "a.h5", raw, change=count)
    with pytest.raises(
        ScanFileError, match=r"counter contrast has the values 0, 1\. Choose one by select=\{'contrast': 0\}"
    ):
        load_ismrmrd(path)
    one = load_ismrmrd(path, select={"contrast": 1})
    assert torch.equal(one.kspace, raw.kspace.reshape(2, 12, 28)[:, 1::2].reshape(2, -1))
    assert torch.equal(load_ismrmrd(path, select={"contrast": range(2)}).kspace, raw.kspace)
    with pytest.raises(ScanFileError, match=r"none of 14 acquisitions is part of an image with \{'contrast': 7\}"):
        load_ismrmrd(path, select={"contrast": 7})
    with pytest.raises(ScanFileError, match="select names 'echo', expected one of kspace_encode_step_1"):
        load_ismrmrd(path, select={"echo": 1})


def test_readouts_of_several_lengths_are_read(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(ismrmrd_write, "_MOST_IN_READOUT", 64)
    save_ismrmrd(tmp_path / "a.h5", dataclasses.replace(raw, n_readout=None))
    back = load_ismrmrd(tmp_path / "a.h5")
    assert torch.equal(back.kspace, raw.kspace)
    assert back.n_readout is None


def test_a_scan_with_maps_is_saved_too(raw, tmp_path):
    save_ismrmrd(tmp_path / "a.h5", Scan(raw.kspace.conj(), raw.trajectory, raw.maps, VOXEL))
    back = load_ismrmrd(tmp_path / "a.h5")
    assert torch.equal(back.kspace, raw.kspace.conj().resolve_conj())
    assert back.noise is None
    with pytest.raises(TypeError, match="scan is a list, expected a Scan or a RawScan"):
        save_ismrmrd(tmp_path / "a.h5", [1])


def edit(*, name=None, value=None):
    """Change a head, or the XML, of a file in place."""

    def change(file):
        if name is None:
            file["dataset/xml"][0] = value(file["dataset/xml"][0])
        else:
            rows = file["dataset/data"][:]
            rows["head"][name][1:] = value
            file["dataset/data"][:] = rows

    return change


def swap(old, new):
    return edit(value=lambda text: text.replace(old, new))


def rename(old, new):
    return lambda file: file.move(old, new)


def put(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename("dataset/data", "dataset/date"), "expected one group with the acquisitions of ISMRMRD .*found none"),
        (rename("dataset/xml", "dataset/xmas"), "/dataset has no XML header"),
        (put("dataset/xml", np.ones(3)), "has no XML header"),
        (put("dataset/xml", np.ones(1)), "xml has dtype float64, expected one text"),
        (put("dataset/data", np.ones(3)), "is not a list of acquisitions of ISMRMRD"),
        (put("dataset/data", np.zeros(3, [("head", "i4"), ("traj", "f4"), ("data", "f4")])), "see version, flags"),
        (swap(b"<encoding>", b"<encoding"), "the XML header cannot be read"),
        (swap(b"encoding>", b"encoded>"), "has no <encoding>"),
        (swap(b"<x>14</x>", b"<x>many</x>"), r"encodedSpace/matrixSize \(z, y, x\) = \['12', '10', 'many'\]"),
        (swap(b"<x>14</x>", b"<x>-14</x>"), "encodedSpace/matrixSize"),
        (swap(b"<x>14</x>", b"<x>14.5</x>"), "expected whole numbers"),
        (swap(b"<x>35.0</x>", b"<x>nan</x>"), "encodedSpace/fieldOfView_mm"),
        (swap(b"<?xml version='1.0' encoding='utf-8'?>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>"), "defines entities"),
        (edit(name="number_of_samples", value=65535), "the heads of data promise .*damaged or cut short"),
        (edit(name="number_of_samples", value=27), "has 112 numbers in data, expected 108"),
        (edit(name="active_channels", value=1), "has 112 numbers in data, expected 56"),
        (edit(name="active_channels", value=0), "has no samples: see number_of_samples"),
        (edit(name="trajectory_dimensions", value=2), "has 84 numbers in traj, expected 56"),
        (edit(name="trajectory_dimensions", value=1), "trajectory_dimensions is 1"),
        (edit(name="discard_pre", value=28), "has no samples: see number_of_samples, discard_pre"),
        (edit(name="active_channels", value=np.arange(2, 14)), "differ in active_channels"),
        (edit(name="flags", value=1 << 18), "none of 13 acquisitions is part of an image"),
    ],
)
def test_what_is_damaged_or_does_not_fit_is_refused_with_the_name_of_the_file(saved, damage, message):
    with h5py.File(saved, "r+") as file:
        damage(file)
    with pytest.raises(ScanFileError, match=message) as caught:
        load_ismrmrd(saved)
    assert str(saved) in str(caught.value)


def test_a_nan_in_the_samples_is_named(raw, tmp_path):
    def spoil(number, acquisition):
        if number == 4:
            acquisition.data[1, 5] = np.nan

    path = write_by_the_library(tmp_path / "a.h5", raw, change=spoil)
    with pytest.raises(ScanFileError, match=r"a\.h5': kspace has 1 values that are NaN or infinite, .*\(1, 117\)"):
        load_ismrmrd(path)


def test_a_failed_save_leaves_the_old_file_and_no_trace(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_ismrmrd(saved, make_raw(noise=False))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["scan.mrd"]
