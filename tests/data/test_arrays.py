import io
import os
import struct
import zipfile

import h5py
import numpy as np
import pytest
import torch
from raw_scans import MATLAB, SHAPE, SPOKES, VOXEL, assert_same, make_raw, matlab_arrays, write_mat73
from scipy.io import savemat

from blockkit.data.arrays import load_arrays, parse
from blockkit.data.files import ScanFileError


@pytest.fixture(scope="module")
def raw():
    return make_raw()


@pytest.fixture
def npz(raw, tmp_path):
    path = tmp_path / "scan.npz"
    np.savez(path, ksp=raw.kspace.reshape(2, 12, 28), coord=raw.trajectory.reshape(12, 28, 3), b1=raw.maps, n=raw.noise)
    return path


def test_an_npz_file_is_read_bit_for_bit(raw, npz):
    arrays = {**SPOKES, "maps": "b1: coil z y x", "noise": "n: coil sample"}
    assert_same(load_arrays(npz, arrays, voxel_size=VOXEL), raw)


def test_a_compressed_npz_file_and_big_endian_numbers_in_fortran_order_are_read(raw, tmp_path):
    ksp, coord = raw.kspace.reshape(2, 12, 28).numpy(), raw.trajectory.reshape(12, 28, 3).numpy()
    np.savez_compressed(tmp_path / "a.npz", ksp=np.asfortranarray(ksp).astype(">c8"), coord=coord.astype(">f8"))
    back = load_arrays(tmp_path / "a.npz", SPOKES, voxel_size=VOXEL)
    assert torch.equal(back.kspace, raw.kspace)
    assert torch.equal(back.trajectory, raw.trajectory)
    assert (back.maps, back.noise, back.image_shape) == (None, None, SHAPE)


def test_a_folder_of_npy_files_is_read(raw, tmp_path):
    np.save(tmp_path / "ksp.npy", raw.kspace.reshape(2, 12, 28).numpy())
    np.save(tmp_path / "coord.npy", raw.trajectory.reshape(12, 28, 3).numpy())
    back = load_arrays(tmp_path, SPOKES, voxel_size=VOXEL)
    assert torch.equal(back.kspace, raw.kspace)
    assert torch.equal(back.trajectory, raw.trajectory)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_matlab_5_file_is_read_bit_for_bit(raw, tmp_path, compressed):
    savemat(tmp_path / "a.mat", matlab_arrays(raw), do_compression=compressed)
    assert_same(load_arrays(tmp_path / "a.mat", MATLAB, voxel_size=VOXEL), raw)


def test_a_matlab_7_3_file_is_read_bit_for_bit(raw, tmp_path):
    write_mat73(tmp_path / "a.mat", matlab_arrays(raw))
    assert_same(load_arrays(tmp_path / "a.mat", MATLAB, voxel_size=VOXEL), raw)


def test_other_hdf5_is_read_with_its_groups(raw, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scan/ksp"] = raw.kspace.reshape(2, 12, 28).numpy()
        file.create_dataset("scan/coord", data=raw.trajectory.reshape(12, 28, 3).numpy(), compression="gzip")
    arrays = {"kspace": "scan/ksp: coil spoke readout", "trajectory": "scan/coord: spoke readout (kz ky kx)"}
    back = load_arrays(tmp_path / "a.h5", arrays, voxel_size=VOXEL)
    assert torch.equal(back.kspace, raw.kspace)
    assert torch.equal(back.trajectory, raw.trajectory)


def test_real_and_imaginary_part_may_be_an_axis(raw, tmp_path):
    pairs = torch.view_as_real(raw.kspace.reshape(2, 12, 28)).permute(3, 0, 1, 2).double().numpy()
    np.savez(tmp_path / "a.npz", ksp=pairs, coord=raw.trajectory.reshape(12, 28, 3))
    arrays = {**SPOKES, "kspace": "ksp: (re im) coil spoke readout"}
    assert torch.equal(load_arrays(tmp_path / "a.npz", arrays, voxel_size=VOXEL).kspace, raw.kspace)
    with pytest.raises(ScanFileError, match=r"ksp has dtype float64, expected complex .* name it \(re im\)"):
        load_arrays(tmp_path / "a.npz", {**SPOKES, "kspace": "ksp: parts coil spoke readout"}, voxel_size=VOXEL)


def test_one_coil_and_one_slice_need_no_axis(tmp_path):
    flat = make_raw(shape=(1, 12, 16), n_coils=1)
    np.savez(tmp_path / "a.npz", k=flat.kspace[0], t=flat.trajectory[:, 1:], b1=flat.maps[0, 0])
    arrays = {"kspace": "k: sample", "trajectory": "t: sample (ky kx)", "maps": "b1: y x"}
    back = load_arrays(tmp_path / "a.npz", arrays, voxel_size=VOXEL)
    assert torch.equal(back.kspace, flat.kspace)
    assert torch.equal(back.trajectory, flat.trajectory)
    assert torch.equal(back.maps, flat.maps)
    assert (back.image_shape, back.n_readout) == ((1, 12, 16), None)


def test_the_unit_is_converted_when_it_is_given(raw, tmp_path):
    coord = (raw.trajectory / torch.tensor(SHAPE)).reshape(12, 28, 3)
    np.savez(tmp_path / "a.npz", ksp=raw.kspace.reshape(2, 12, 28), coord=coord)
    with pytest.raises(ScanFileError, match="looks like cycles/voxel"):
        load_arrays(tmp_path / "a.npz", SPOKES, voxel_size=VOXEL, image_shape=SHAPE)
    back = load_arrays(tmp_path / "a.npz", SPOKES, voxel_size=VOXEL, image_shape=SHAPE, unit="cycles/voxel")
    torch.testing.assert_close(back.trajectory, raw.trajectory)


@pytest.mark.parametrize(
    "text",
    ["ksp", "ksp:", ": coil", "ksp: coil coil", "k: a (b", "k: a b)", "k: a (", "k: () a", "k: a (kx a)", "k: (a (b))"],
)
def test_axes_that_are_not_named_rightly_are_refused(text):
    with pytest.raises(ValueError, match="does not name an array and its axes"):
        parse(text)


def test_names_and_axes_are_told_apart():
    assert parse("a/b: coil spoke (kx ky -)") == ("a/b", ["coil", "spoke", ("kx", "ky", "-")])
    assert parse("t:(kx ky kz)s") == ("t", [("kx", "ky", "kz"), "s"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kspace": "raw: coil spoke readout"}, "there is no array 'raw'. There are: b1, coord, ksp, n"),
        ({"kspace": "ksp: coil readout"}, r"ksp has shape \(2, 12, 28\), and 2 axes are named: coil readout"),
        ({"kspace": "ksp: coil spoke (a b)"}, r"parentheses may only hold \(re im\)"),
        ({"kspace": "ksp: spoke coil readout"}, r"coord has the sample axes .*'spoke': 12.*, and k-space .*'spoke': 2"),
        ({"trajectory": "coord: spoke readout column"}, "expected one in parentheses"),
        ({"trajectory": "coord: spoke readout (kx ky)"}, "has 3 columns, and 2 are named"),
        ({"trajectory": "coord: spoke arm (kx ky kz)"}, "has the sample axes"),
        ({"trajectory": "b1: a b c (kx ky kz)"}, "has 14 columns"),
        ({"maps": "b1: coil a y x"}, "the axes coil a y x were named, expected those of coil z y x"),
        ({"noise": "ksp: spoke coil readout"}, "noise has shape"),
        ({"noise": "n: coil (kx ky)"}, r"parentheses may only hold|expected one that counts samples"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_file(npz, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_arrays(npz, {**SPOKES, **change}, voxel_size=VOXEL)
    assert str(npz) in str(caught.value)


def test_what_is_asked_for_wrongly_is_refused(npz):
    with pytest.raises(ValueError, match="arrays names kspace, expected kspace and trajectory"):
        load_arrays(npz, {"kspace": "ksp: coil spoke readout"}, voxel_size=VOXEL)
    with pytest.raises(ValueError, match="arrays names kspace, trajectory, b1, expected"):
        load_arrays(npz, {**SPOKES, "b1": "b1: coil z y x"}, voxel_size=VOXEL)
    with pytest.raises(ValueError, match="kspace has the axes coil, expected one that counts samples"):
        load_arrays(npz, {**SPOKES, "kspace": "ksp: coil"}, voxel_size=VOXEL)
    with pytest.raises(ValueError, match="unit is 'mm'"):
        load_arrays(npz, SPOKES, voxel_size=VOXEL, unit="mm")
    with pytest.raises(FileNotFoundError, match="There is no scan file"):
        load_arrays(npz.with_name("none.npz"), SPOKES, voxel_size=VOXEL)


class Bomb:
    """What a pickle would run."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_pickle_is_refused_and_not_run(tmp_path, name):
    array = np.array([Bomb(tmp_path / "made")], dtype=object)
    if name == "a.npz":
        np.savez(tmp_path / name, ksp=array)
    else:
        np.save(tmp_path / name, array)
    with pytest.raises(ScanFileError, match="dtype object, expected an array of numbers"):
        load_arrays(tmp_path / name, SPOKES, voxel_size=VOXEL)
    assert not (tmp_path / "made").exists()
    np.load(tmp_path / name, allow_pickle=True)["ksp" if name == "a.npz" else ...]
    assert (tmp_path / "made").exists()  # it would have run


def npy_header(shape, descr="<c8"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header(f"({2**60}, 2)") + bytes(16), "which is 18446744073709551616 bytes, and 16 follow its header"),
        (npy_header("(2,)") + bytes(15), "and 15 follow its header: it is damaged"),
        (npy_header("(-2,)"), "expected an array of numbers"),
        (npy_header("(2,)", "|V8") + bytes(16), "expected an array of numbers"),
        (npy_header("(" * 400 + ")" * 400), "has a header that cannot be read"),
        (npy_header("(2L, ("), "has a header that cannot be read"),
        (b"\x93NUMPY\x03\x00" + bytes(100), r"NumPy's version \(3, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff", "has a header that cannot be read"),
        (b"hello", "is none of .npz, .npy, .mat"),
        (b"", "is none of .npz, .npy, .mat"),
    ],
)
def test_an_npy_file_that_lies_is_refused(tmp_path, content, message):
    (tmp_path / "ksp.npy").write_bytes(content)
    with pytest.raises(ScanFileError, match=message) as caught:
        load_arrays(tmp_path / "ksp.npy", SPOKES, voxel_size=VOXEL)
    assert "ksp.npy" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "packing", "message"),
    [
        (npy_header(f"({2**60},)") + bytes(16), zipfile.ZIP_DEFLATED, "which is 9223372036854775808 bytes"),
        (npy_header("(2,)") + bytes(24), zipfile.ZIP_STORED, "which is 16 bytes, and the file holds 24"),
        (npy_header("(2,)") + bytes(16), zipfile.ZIP_BZIP2, "packed in a way that NumPy does not use"),
    ],
)
def test_an_npz_file_that_lies_is_refused(tmp_path, content, packing, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
        archive.writestr("ksp.npy", content)
    with pytest.raises(ScanFileError, match=message):
        load_arrays(tmp_path / "a.npz", SPOKES, voxel_size=VOXEL)


def test_a_matlab_file_that_lies_is_refused(raw, tmp_path):
    good = io.BytesIO()
    savemat(good, {"ksp": raw.kspace.reshape(2, 12, 28).numpy()})
    content = good.getvalue()
    dims = content.index(struct.pack("<3i", 2, 12, 28))
    for at, word, message in (
        (dims, 2**31 - 1, r"ksp has shape \(2147483647, 12, 28\) and 2688 bytes of numbers"),
        (dims, 2**31, "it is damaged"),
        (132, 2**32 - 1, "at byte 128 it promises 4294967295 bytes, and has"),
        (len(content) - 2688 - 4, 2**31, r"promises 2147483648 bytes where 2688 are left"),
    ):
        bad = bytearray(content)
        bad[at : at + 4] = struct.pack("<I", word)
        (tmp_path / "a.mat").write_bytes(bad)
        with pytest.raises(ScanFileError, match=message):
            load_arrays(tmp_path / "a.mat", SPOKES, voxel_size=VOXEL)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_number_that_is_not_finite_is_counted_in_a_matlab_7_3_file(raw, tmp_path, value):
    arrays = matlab_arrays(raw)
    arrays["ksp"] = arrays["ksp"].copy()
    arrays["ksp"][3, 2, 1] = complex(0, value)
    write_mat73(tmp_path / "a.mat", arrays)
    with pytest.raises(
        ScanFileError, match=r"kspace has 1 values that are NaN or infinite, the first at index \(1, 59\)"
    ):
        load_arrays(tmp_path / "a.mat", MATLAB, voxel_size=VOXEL)


@pytest.mark.parametrize("kind", ["external", "link", "virtual"])
def test_hdf5_that_points_to_another_file_is_refused(raw, tmp_path, kind):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["ksp"] = raw.kspace.reshape(2, 12, 28).numpy()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "link":
            file["ksp"] = h5py.ExternalLink("other.h5", "ksp")
        elif kind == "external":
            file.create_dataset("ksp", (2, 12, 28), "c8", external=[("other.h5", 0, 5376)])
        else:
            layout = h5py.VirtualLayout((2, 12, 28), "c8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "ksp", (2, 12, 28))
            file.create_virtual_dataset("ksp", layout)
    with pytest.raises(ScanFileError, match=r"there is no array 'ksp'|ksp lies in another file"):
        load_arrays(tmp_path / "a.h5", SPOKES, voxel_size=VOXEL)


def test_a_name_cannot_write_to_the_terminal(raw, tmp_path):
    np.savez(tmp_path / "a.npz", **{"k\x1b[31m\nred": raw.kspace})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["k\x1b[31m\nred"] = raw.kspace.numpy()
    for name in ("a.npz", "a.h5"):
        with pytest.raises(ScanFileError, match=r"There are: k\\x1b\[31m red\.") as caught:
            load_arrays(tmp_path / name, SPOKES, voxel_size=VOXEL)
        assert str(caught.value).isprintable()
