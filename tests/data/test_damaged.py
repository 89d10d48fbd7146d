"""A damaged file ends in one clear error that names it, or is read: no crash, no hang, no huge array."""

import gzip
import sys
import time

import numpy as np
import pytest
from raw_scans import MATLAB, SPOKES, VOXEL, make_raw, matlab_arrays, mutate, write_mat73
from scipy.io import savemat

from blockkit.data.arrays import load_arrays
from blockkit.data.cfl import load_cfl, save_cfl
from blockkit.data.files import ScanFileError
from blockkit.data.folder import ScanFolder
from blockkit.data.formats import save_nifti
from blockkit.data.info import describe_file
from blockkit.data.ismrmrd import load_ismrmrd
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.opening import open_scan
from blockkit.data.scan import load_scan

RAW = make_raw(shape=(6, 5, 7), n_spokes=6)
MOST_BYTES = 2 * 2**30
MOST_SECONDS = 20


def in_spokes(raw):
    return {"ksp": raw.kspace.reshape(2, 6, 14).numpy(), "coord": raw.trajectory.reshape(6, 14, 3).numpy()}


def read_cfl_pair(path):
    base = path.with_suffix("")
    return load_cfl(base, str(base).replace("_kspace", "_trajectory"), voxel_size=VOXEL, image_shape=RAW.image_shape)


def read_arrays(arrays):
    return lambda path: load_arrays(path, arrays, voxel_size=VOXEL, image_shape=RAW.image_shape)


def write_gz(path):
    save_nifti(path.with_suffix(".nii"), RAW.maps[0], VOXEL)
    path.write_bytes(gzip.compress(path.with_suffix(".nii").read_bytes()))


FORMATS = {
    "scan.h5": (lambda path: RAW.with_maps(RAW.maps).save(path), load_scan),
    "scan.mrd": (lambda path: save_ismrmrd(path, RAW), load_ismrmrd),
    "scan_kspace.hdr": (lambda path: save_cfl(path.with_name("scan"), RAW), read_cfl_pair),
    "scan_kspace.cfl": (lambda path: save_cfl(path.with_name("scan"), RAW), read_cfl_pair),
    "ksp.npy": (lambda path: [np.save(path.with_name(f"{n}.npy"), a) for n, a in in_spokes(RAW).items()], None),
    "stored.npz": (lambda path: np.savez(path, **in_spokes(RAW)), read_arrays(SPOKES)),
    "packed.npz": (lambda path: np.savez_compressed(path, **in_spokes(RAW)), read_arrays(SPOKES)),
    "stored.mat": (lambda path: savemat(path, matlab_arrays(RAW)), read_arrays(MATLAB)),
    "packed.mat": (lambda path: savemat(path, matlab_arrays(RAW), do_compression=True), read_arrays(MATLAB)),
    "hdf5.mat": (lambda path: write_mat73(path, matlab_arrays(RAW)), read_arrays(MATLAB)),
    "image.nii": (lambda path: save_nifti(path, RAW.maps[0], VOXEL), None),
    "image.nii.gz": (write_gz, None),
}


@pytest.fixture
def little_memory():
    """Let an allocation of more than 2 GiB fail, so that a lie that is believed is seen."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_read(path, read):
    started = time.process_time()
    said = error_of(path, read)
    assert said is None or (path.name.split("_")[0].split(".")[0] in said and "\n" not in said)
    assert time.process_time() - started < MOST_SECONDS


def error_of(path, read):
    try:
        read(path)
    except ScanFileError as error:
        return str(error)
    return None


def check_format(name, folder, seeds):
    make, read = FORMATS[name]
    path = folder / name
    make(path)
    good = path.read_bytes()
    check_read(path, describe_file)
    for seed in seeds:
        path.write_bytes(mutate(good, seed))
        check_read(path, describe_file)
        if read is not None:
            check_read(path, read)
        elif name.endswith(".npy"):
            check_read(path, lambda path: read_arrays(SPOKES)(path.parent))


def test_a_file_that_makes_the_library_write_past_its_memory_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "hdf5.mat"
    write_mat73(path, matlab_arrays(RAW))
    path.write_bytes(mutate(path.read_bytes(), 2356))
    assert "n has numbers of a type that no computer writes" in error_of(path, FORMATS["hdf5.mat"][1])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_one_clear_error_or_is_read(name, tmp_path):
    check_format(name, tmp_path, range(20))


@pytest.mark.long
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", FORMATS)
def test_two_thousand_damaged_files_are_each_one_clear_error_or_are_read(name, tmp_path):
    check_format(name, tmp_path, range(1000, 3000))


def check_of_folder(name, folder, seeds):
    """The report names every file that cannot be read, and a file that it calls good can be."""
    make, _ = FORMATS[name]
    path = folder / name
    make(path)
    good = path.read_bytes()
    n_bad = 0
    for seed in seeds:
        path.write_bytes(mutate(good, seed))
        (file,) = ScanFolder(folder, name).check(values=True).files
        assert file.problem is None or (file.problem and "\n" not in file.problem)
        if file.problem is None:
            open_scan(path)
        n_bad += file.problem is not None
    assert 0 < n_bad < len(seeds)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["scan.h5", "scan.mrd"])
def test_a_file_that_passes_the_check_of_its_folder_can_be_read(name, tmp_path):
    check_of_folder(name, tmp_path, range(3000, 3020))
