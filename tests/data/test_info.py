import os
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from raw_scans import SHAPE, VOXEL, make_raw, matlab_arrays
from scipy.io import savemat

from blockkit.data import hdf5
from blockkit.data.cfl import save_cfl
from blockkit.data.files import ScanFileError
from blockkit.data.formats import save_nifti
from blockkit.data.info import describe_file
from blockkit.data.ismrmrd_header import ACQUISITION, Space, make_header
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.scan import Scan

FIFTY_GB, N_ROWS = 50 * 10**9, 100 * 1024


@pytest.fixture(scope="module")
def raw():
    return make_raw()


def has(text, *parts):
    return [part for part in parts if part not in text] == []


def test_a_scan_file_is_described(raw, tmp_path):
    Scan(raw.kspace, raw.trajectory, raw.maps, VOXEL).save(tmp_path / "a.h5")
    text = describe_file(tmp_path / "a.h5")
    assert has(text, "(2, 336)  complex64", "(336, 3)  float32", "columns kz ky kx", "1.5 x 2 x 2.5 mm (z, y, x)")
    assert has(text, "reference   missing: images can be made", "the image reaches 6, 5, 7")


def test_an_ismrmrd_file_is_described_with_what_it_lacks(raw, tmp_path):
    save_ismrmrd(tmp_path / "a.h5", raw)
    text = describe_file(tmp_path / "a.h5")
    assert has(text, "13 acquisitions 12 of the image, 1 of noise, 0 others", "2 coils, 28 samples", "(12, 10, 14)")
    assert has(text, "3 columns, cycles/FOV", "bk.load_ismrmrd(")
    assert "missing" not in text
    save_ismrmrd(tmp_path / "a.h5", make_raw(noise=False, maps=False))
    text = describe_file(tmp_path / "a.h5")
    assert has(text, "noise       missing", "maps        missing: estimate them, then raw.with_maps(maps)")


def test_an_ismrmrd_file_without_trajectory_or_with_several_images_says_so(raw, tmp_path):
    save_ismrmrd(tmp_path / "a.h5", raw)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        rows = file["dataset/data"][:]
        rows["head"]["trajectory_dimensions"] = 0
        rows["head"]["idx"]["set"] = np.arange(13) % 2
        file["dataset/data"][:] = rows
    text = describe_file(tmp_path / "a.h5")
    assert has(
        text, "trajectory  missing: pass trajectory=, (sample, 3)", "set         0, 1: choose by select={'set': ...}"
    )


def test_the_pairs_of_bart_are_described(raw, tmp_path):
    save_cfl(tmp_path / "a", raw)
    assert has(
        describe_file(tmp_path / "a_kspace.cfl"), "k-space of a non-Cartesian scan: 28 samples x 12 spokes, 2 coils"
    )
    assert has(describe_file(tmp_path / "a_trajectory.hdr"), "trajectory: 28 samples x 12 spokes, reaches ")
    assert has(describe_file(tmp_path / "a_maps"), "image or maps: (z, y, x) = (12, 10, 14), 2 coils")


def test_a_set_of_pairs_is_recognized_by_its_names(raw, tmp_path):
    save_cfl(tmp_path / "a", raw)
    names = {name: str(tmp_path / f"a_{name}") for name in ("kspace", "trajectory", "maps", "noise")}
    for name in names.values():
        text = describe_file(name)
        assert has(text, f"bk.load_cfl({names['kspace']!r}, {names['trajectory']!r}, maps={names['maps']!r}, noise=")
        assert has(text, "  missing     voxel size")
    (tmp_path / "a_trajectory.hdr").unlink()
    text = describe_file(tmp_path / "a_kspace")
    assert has(text, "missing     trajectory (other files), voxel size", "bk.load_cfl(kspace, trajectory, maps, voxel")


def test_arrays_are_described_by_name(raw, tmp_path):
    arrays = {"ksp": raw.kspace.numpy(), "coord": raw.trajectory.numpy()}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    savemat(tmp_path / "a.mat", {**arrays, "note": "hello"})
    (tmp_path / "folder").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", values)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ksp"], file["coord"] = arrays["ksp"], arrays["coord"]
    for name in ("a.npz", "a.mat", "folder", "a.h5"):
        text = describe_file(tmp_path / name)
        assert has(text, "ksp         (2, 336)  complex64", "coord       (336, 3)  float32", "bk.load_arrays("), name
        assert has(text, "'kspace': 'ksp: coil sample'", "'trajectory': 'coord: sample (kx ky kz)'"), name
        assert has(text, "missing     what the axes are, voxel size"), name
    assert has(describe_file(tmp_path / "folder" / "ksp.npy"), "(2, 336)  complex64")


def test_the_call_that_reads_arrays_is_suggested_with_likely_axes_and_unit(raw, tmp_path):
    ksp, coord = raw.kspace.reshape(2, 12, 28).numpy(), raw.trajectory.reshape(12, 28, 3).numpy()
    np.savez(tmp_path / "a.npz", ksp=ksp, coord=coord[..., 1:] / 28, b1=raw.maps.numpy(), fov=np.float64(400.0))
    text = describe_file(tmp_path / "a.npz")
    assert has(text, "'ksp: coil spoke readout'", "'coord: spoke readout (kx ky)'", "()  float64  0.0 MiB  400")
    assert "unit" not in text
    np.savez(tmp_path / "a.npz", ksp=ksp, coord=coord / SHAPE, b1=raw.maps.numpy())
    assert has(describe_file(tmp_path / "a.npz"), "voxel_size=(z, y, x), image_shape=(z, y, x), unit='cycles/voxel')")
    savemat(tmp_path / "a.mat", matlab_arrays(raw))
    assert has(describe_file(tmp_path / "a.mat"), "'ksp: readout spoke coil'", "'coord: (kx ky kz) readout spoke'")
    np.savez(tmp_path / "a.npz", ksp=ksp)
    assert has(describe_file(tmp_path / "a.npz"), "'ksp: coil spoke readout'", "'NAME: spoke readout (kx ky kz)'")


def test_an_image_is_described_as_one(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", torch.ones(SHAPE, dtype=torch.complex64), VOXEL)
    text = describe_file(tmp_path / "a.nii.gz")
    assert has(text, "(14, 10, 12)  float32", "1.5 x 2 x 2.5 mm (z, y, x), axes point to LPI", "an image, not a scan")


def test_a_bad_header_of_an_image_is_said_once_by_the_error_or_not_at_all(tmp_path, caplog):
    save_nifti(tmp_path / "a.nii", torch.ones(SHAPE, dtype=torch.complex64), VOXEL)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[76:92] = bytes(16)  # the voxel size
    (tmp_path / "a.nii").write_bytes(content)
    assert has(describe_file(tmp_path / "a.nii"), "(14, 10, 12)  float32")
    assert not caplog.records
    nibabel.load(tmp_path / "a.nii")
    assert caplog.records


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt", "a.h5", "a.mat", "a.npz", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_what_is_none_of_the_formats_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanFileError, match=f"{name}' is no"):
        describe_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no"):
        describe_file(tmp_path / f"other_{name}")


def make_sparse_cfl(folder):
    (folder / "a.hdr").write_text(f"# Dimensions\n1 500 {FIFTY_GB // 80_000} 20\n")
    with (folder / "a.cfl").open("wb") as file:
        file.truncate(8 * 500 * (FIFTY_GB // 80_000) * 20)
    return folder / "a.cfl"


def reserve(group, name, shape, dtype):
    """Make a dataset whose place in the file is taken and not written."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
    h5py.h5d.create(group.id, name.encode(), kind, space, layout)


def make_sparse_scan(folder):
    n = FIFTY_GB // 160
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs.update(format="blockkit-scan", version=1, voxel_size=[1.0, 1.0, 1.0])
        reserve(file, "kspace", (20, n), "c8")
        reserve(file, "trajectory", (n, 3), "f4")
        reserve(file, "maps", (20, 64, 64, 64), "c8")
    return folder / "a.h5"


def make_sparse_npy(folder):
    path = folder / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "<c8", "fortran_order": False, "shape": (20, FIFTY_GB // 160)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + FIFTY_GB)
    return path


def make_sparse_ismrmrd(folder):
    with h5py.File(folder / "a.mrd", "w") as file:
        group = file.create_group("dataset")
        xml = make_header(Space((64, 64, 64), (64.0, 64.0, 64.0)), 20, "cycles/FOV").decode()
        group.create_dataset("xml", (1,), h5py.string_dtype())[0] = xml
        table = group.create_dataset("data", (N_ROWS,), ACQUISITION, chunks=(1024,), compression="gzip")
        rows = np.zeros(1024, ACQUISITION)
        rows["head"]["number_of_samples"], rows["head"]["active_channels"] = 500, 20
        for row in rows:
            row["traj"] = row["data"] = np.zeros(0, "f4")
        for start in range(0, N_ROWS, 1024):
            table[start : start + 1024] = rows
    with (folder / "a.mrd").open("r+b") as file:
        file.truncate(FIFTY_GB)
    return folder / "a.mrd"


def bytes_read(process: str) -> int:
    return int(Path(f"/proc/{process}/io").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts the bytes in /proc")
@pytest.mark.parametrize("make", [make_sparse_cfl, make_sparse_scan, make_sparse_npy, make_sparse_ismrmrd])
def test_a_file_of_50_gb_is_described_by_reading_a_few_megabytes(tmp_path, make):
    path = make(tmp_path)
    assert os.stat(path).st_size >= FIFTY_GB
    if os.stat(path).st_blocks * 512 > 10**9:
        pytest.skip("the file system has no sparse files")
    hdf5._prober.ask(Path(__file__), False)  # started, so that its imports are not counted
    helper = str(hdf5._prober._process.pid)
    before = bytes_read("self"), bytes_read(helper)
    text = describe_file(path)
    assert "50" in text or "47683.7 MiB" in text or "102400" in text
    assert bytes_read("self") - before[0] < 2**23
    assert bytes_read(helper) - before[1] < 2**23
