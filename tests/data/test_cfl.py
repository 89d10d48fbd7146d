import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from raw_scans import SHAPE, VOXEL, assert_same, make_raw

from blockkit.data.cfl import load_cfl, read_cfl, save_cfl, write_cfl
from blockkit.data.files import ScanFileError
from blockkit.data.scan import Scan
from blockkit.physics.fourier import DirectFourier
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="needs BART")


@pytest.fixture(scope="module")
def raw():
    return make_raw()


@pytest.fixture
def saved(raw, tmp_path):
    save_cfl(tmp_path / "scan", raw)
    return tmp_path / "scan"


def load(base, **options):
    return load_cfl(f"{base}_kspace", f"{base}_trajectory", **{"voxel_size": VOXEL, **options})


def bart(folder, *words):
    done = subprocess.run(["bart", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_saved_scan_comes_back_bit_for_bit(raw, saved):
    back = load(saved, maps=f"{saved}_maps.hdr", noise=f"{saved}_noise.cfl")
    assert_same(back, raw)


def test_a_scan_with_maps_is_saved_too_and_its_names_are_returned(raw, tmp_path):
    names = save_cfl(tmp_path / "s", Scan(raw.kspace, raw.trajectory, raw.maps, VOXEL))
    assert [name.name for name in names] == ["s_kspace", "s_trajectory", "s_maps"]
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n.name}.{end}" for n in names for end in ("cfl", "hdr"))
    assert torch.equal(load(tmp_path / "s").kspace, raw.kspace)


def test_the_image_shape_is_that_of_the_maps_or_holds_the_trajectory_or_is_given(saved):
    assert load(saved, maps=f"{saved}_maps").image_shape == SHAPE
    assert load(saved).image_shape == SHAPE
    assert load(saved, image_shape=(16, 16, 20)).image_shape == (16, 16, 20)


def test_dimensions_are_those_of_bart_fastest_first(saved):
    first = {
        name: [int(n) for n in (saved.parent / f"scan_{name}.hdr").read_text().splitlines()[1].split()]
        for name in ("kspace", "trajectory", "maps", "noise")
    }
    assert {len(dims) for dims in first.values()} == {16}
    assert {name: dims[:5] for name, dims in first.items()} == {
        "kspace": [1, 28, 12, 2, 1],
        "trajectory": [3, 28, 12, 1, 1],
        "maps": [14, 10, 12, 2, 1],
        "noise": [1, 40, 1, 2, 1],
    }


def test_a_slice_is_a_volume_one_voxel_thick(tmp_path):
    flat = make_raw(shape=(1, 12, 16))
    save_cfl(tmp_path / "flat", flat)
    back = load(tmp_path / "flat", maps=tmp_path / "flat_maps", noise=tmp_path / "flat_noise")
    assert back.image_shape == (1, 12, 16)
    assert_same(back, flat)
    write_cfl(tmp_path / "flat_trajectory", flat.trajectory.flip(1)[:, :2].reshape(12, 32, 2).to(torch.complex64))
    assert_same(load(tmp_path / "flat", maps=tmp_path / "flat_maps", noise=tmp_path / "flat_noise"), flat)


def test_more_frames_are_more_spokes(raw, tmp_path):
    kspace = raw.kspace.reshape(2, 12, 28)
    frames = torch.stack([kspace[:, :6], kspace[:, 6:]])  # (time, coil, spoke, readout), time being dimension 10
    write_cfl(tmp_path / "t_kspace", frames.reshape(2, 1, 1, 1, 1, 1, 1, 2, 6, 28, 1))
    points = raw.trajectory.flip(1).reshape(2, 1, 1, 1, 1, 1, 1, 1, 6, 28, 3).to(torch.complex64)
    write_cfl(tmp_path / "t_trajectory", points)
    back = load(tmp_path / "t")
    assert torch.equal(back.kspace, raw.kspace)
    assert torch.equal(back.trajectory, raw.trajectory)
    write_cfl(tmp_path / "t_trajectory", points[:1])
    with pytest.raises(ScanFileError, match="expected the same"):
        load(tmp_path / "t")


def test_a_trajectory_in_cycles_per_voxel_is_named_and_can_be_read(raw, saved):
    points = raw.trajectory / torch.tensor(SHAPE)
    write_cfl(f"{saved}_trajectory", points.flip(1).reshape(12, 28, 3).to(torch.complex64))
    with pytest.raises(ScanFileError, match=r"scan_trajectory': .*looks like cycles/voxel: write unit='cycles/voxel'"):
        load(saved, image_shape=SHAPE)
    with pytest.raises(ScanFileError, match="Add image_shape"):
        load(saved)
    back = load(saved, image_shape=SHAPE, unit="cycles/voxel")
    torch.testing.assert_close(back.trajectory, raw.trajectory)


def header(text):
    return lambda base: (base.parent / "scan_kspace.hdr").write_text(text)


def replaced(name, values):
    return lambda base: write_cfl(f"{base}_{name}", values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (header(""), r"scan_kspace\.hdr' has no line of at most 16"),
        (header("# Dimensions\n"), "has no line of at most 16"),
        (header("# Dimensions\n1 28 12 -2"), "has no line of at most 16"),
        (header("# Dimensions\n1 28 12 two"), "has no line of at most 16"),
        (header("# Dimensions\n" + "1 " * 17), "has no line of at most 16"),
        (header("# Dimensions\n1 28 12 0"), "says dimensions 1, 28, 12, 0, which is 0 bytes"),
        (
            header(f"# Dimensions\n1 {2**60} 12 2"),
            "which is 221360928884514619392 bytes, and 'scan_kspace.cfl' has 5376",
        ),
        (lambda base: (base.parent / "scan_kspace.cfl").write_bytes(b"1234567"), "and 'scan_kspace.cfl' has 7"),
        (replaced("kspace", torch.ones(2, 12, 10, 14) + 0j), "the first is 1 in a non-Cartesian scan"),
        (replaced("kspace", torch.full((2, 12, 28, 1), torch.nan + 0j)), "kspace has 672 values that are NaN"),
        (replaced("kspace", torch.ones(2, 11, 28, 1) + 0j), "expected the same"),
        (replaced("trajectory", torch.ones(12, 28, 4) + 0j), "has dimensions 4, 28, 12, expected 3"),
        (replaced("trajectory", torch.ones(12, 28, 3) * 1j), "is complex, expected a trajectory"),
        (replaced("trajectory", torch.full((12, 28, 3), torch.nan + 0j)), "scan_trajectory': trajectory is NaN"),
        (replaced("maps", torch.ones(2, 2, 12, 10, 14) + 0j), "It has 2 sets: take the first by 'bart slice 4 0'"),
        (replaced("maps", torch.ones(3, 12, 10, 14) + 0j), "expected the same number|2 coils, and maps 3"),
    ],
)
def test_what_is_damaged_or_does_not_fit_is_refused_with_the_name_of_the_file(saved, damage, message):
    damage(saved)
    with pytest.raises(ScanFileError, match=message):
        load(saved, maps=f"{saved}_maps")


def test_a_missing_half_is_named(saved):
    os.remove(f"{saved}_kspace.hdr")
    with pytest.raises(FileNotFoundError, match=r"There is no header '.*scan_kspace\.hdr'"):
        load(saved)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        save_cfl(saved.parent / "none" / "scan", make_raw())


def test_a_failed_save_leaves_the_old_pair(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_cfl(saved, make_raw(noise=False))
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before


def other_scan(raw):
    """One that has files of the same sizes, other numbers and other dimensions."""
    return dataclasses.replace(raw, kspace=-raw.kspace, trajectory=-raw.trajectory, n_readout=14, maps=-raw.maps)


def load_all(base):
    return load(base, maps=f"{base}_maps", noise=f"{base}_noise")


def test_what_a_kill_leaves_at_any_moment_of_a_save_is_the_old_scan_the_new_one_or_refused(saved, raw, monkeypatch):
    left = []

    def replace(source, target):
        left.append({p.name: p.read_bytes() for p in saved.parent.iterdir() if p.is_file()})
        os.rename(source, target)

    monkeypatch.setattr("os.replace", replace)
    new = other_scan(raw)
    save_cfl(saved, new)
    assert_same(load_all(saved), new)
    assert len(left) == 12  # four old headers away, four arrays, four headers
    n_refused = 0
    for files in left:
        for path in saved.parent.iterdir():
            path.unlink()
        for name, content in files.items():
            (saved.parent / name).write_bytes(content)
        try:
            back = load_all(saved)
        except FileNotFoundError as error:
            n_refused += "There is no header" in str(error)
        else:
            assert_same(back, raw if back.n_readout == raw.n_readout else new)
    assert n_refused == 11


def test_a_save_that_is_killed_leaves_no_header_of_another_array(saved, raw):
    script = f"""
import dataclasses, os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from raw_scans import make_raw
from test_cfl import other_scan
from blockkit.data.cfl import save_cfl
moved = []
def replace(source, target):
    os.rename(source, target)
    moved.append(target)
    if len(moved) == 6:
        os._exit(3)
os.replace = replace
save_cfl({os.fspath(saved)!r}, other_scan(make_raw()))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3
    for name in ("kspace", "trajectory", "maps", "noise"):
        with pytest.raises(FileNotFoundError, match=rf"no header '.*scan_{name}\.hdr'"):
            read_cfl(f"{saved}_{name}")
    save_cfl(saved, raw)
    assert_same(load_all(saved), raw)


def make_blob(shape, n_spokes):
    """A scan of a smooth object in the middle, where BART's gridding is accurate, and the object."""
    z, y, x = torch.meshgrid(*((torch.arange(n) - n // 2 + (n > 1)) / n for n in shape), indexing="ij")
    image = torch.exp(-30 * (z**2 + y**2 + 2 * x**2)).to(torch.complex64)
    raw = make_raw(shape=shape, n_spokes=n_spokes)
    kspace = torch.stack([DirectFourier(raw.trajectory, shape).forward(one * image) for one in raw.maps])
    return dataclasses.replace(raw, kspace=kspace), image


@needs_bart
def test_bart_reads_what_is_written(raw, saved):
    bart(saved.parent, "scale", "2", "scan_kspace", "twice")
    assert torch.equal(torch.from_numpy(read_cfl(saved.parent / "twice")).reshape(2, -1), 2 * raw.kspace)


@needs_bart
def test_barts_transform_has_the_same_axes_sign_center_and_scale(tmp_path):
    image = torch.randn(SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    k = radial_3d(12, 28, SHAPE)
    write_cfl(tmp_path / "image", image)
    write_cfl(tmp_path / "points", k.flip(1).reshape(12, 28, 3).to(torch.complex64))
    expected = DirectFourier(k, SHAPE).forward(image)
    bart(tmp_path, "nufft", "-s", "points", "image", "samples")  # the exact sum, without a scale
    samples = torch.from_numpy(read_cfl(tmp_path / "samples").reshape(-1).copy()) / image.numel() ** 0.5
    assert torch.linalg.vector_norm(samples - expected) < 1e-5 * torch.linalg.vector_norm(expected)
    bart(tmp_path, "nufft", "points", "image", "samples")  # gridded, in BART's own scale
    samples = torch.from_numpy(read_cfl(tmp_path / "samples").reshape(-1).copy())
    assert abs(torch.vdot(expected, samples) / torch.vdot(expected, expected) - 1) < 0.05


@needs_bart
def test_bart_reconstructs_a_scan_that_was_written(tmp_path):
    raw, image = make_blob(SHAPE, n_spokes=150)
    save_cfl(tmp_path / "scan", raw)
    bart(tmp_path, "pics", "-S", "-i50", "-r0.0001", "-t", "scan_trajectory", "scan_kspace", "scan_maps", "image")
    back = torch.from_numpy(read_cfl(tmp_path / "image").reshape(SHAPE).copy())
    assert torch.linalg.vector_norm(back - image) < 0.05 * torch.linalg.vector_norm(image)


@needs_bart
@pytest.mark.parametrize("shape", [SHAPE, (1, 24, 20)], ids=str)
def test_barts_gridding_of_a_scan_that_was_written_is_ours_up_to_a_scale(tmp_path, shape):
    raw, _ = make_blob(shape, n_spokes=60)
    A = Encoding(raw.trajectory, raw.maps, tolerance=1e-6)
    expected = A.adjoint(A.dcf * raw.kspace)
    save_cfl(tmp_path / "scan", raw)
    write_cfl(tmp_path / "dcf", A.dcf.reshape(1, -1, raw.n_readout, 1).to(torch.complex64))
    bart(tmp_path, "fmac", "scan_kspace", "dcf", "weighted")
    bart(tmp_path, "nufft", "-a", "-d", ":".join(map(str, shape[::-1])), "scan_trajectory", "weighted", "coils")
    bart(tmp_path, "fmac", "-C", "-s", 8, "coils", "scan_maps", "image")
    image = torch.from_numpy(read_cfl(tmp_path / "image").reshape(shape).copy())
    scale = torch.vdot(image.flatten(), expected.flatten()) / torch.vdot(image.flatten(), image.flatten())
    assert torch.linalg.vector_norm(scale * image - expected) < 1e-3 * torch.linalg.vector_norm(expected)
    assert abs(scale - 1) < 0.05


@needs_bart
def test_what_bart_writes_is_read(tmp_path):
    bart(tmp_path, "traj", "-x", 32, "-y", 20, "-r", "-3", "points")
    bart(tmp_path, "phantom", "-s", 3, "-3", "-k", "-t", "points", "samples")
    back = load_cfl(tmp_path / "samples", tmp_path / "points", voxel_size=VOXEL)
    assert (back.n_coils, back.n_samples, back.n_readout) == (3, 640, 32)
    assert back.image_shape == tuple(
        2 * int(np.ceil(np.abs(read_cfl(tmp_path / "points").real[..., i]).max() / 1.001)) for i in (2, 1, 0)
    )
    np.testing.assert_array_equal(back.trajectory, read_cfl(tmp_path / "points").real.reshape(-1, 3)[:, ::-1])
