import os
import re
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from blockkit.data import hdf5, probe
from blockkit.data.files import ScanFileError
from blockkit.data.hdf5 import find, open_hdf5, read_attribute, read_dataset


@pytest.fixture
def good(tmp_path):
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["numbers"] = np.arange(12.0).reshape(3, 4)
        file.create_dataset("group/packed", data=np.zeros((1000, 100)), compression="gzip", chunks=(500, 100))
        file.attrs["note"] = "hello"
    return tmp_path / "good.h5"


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Put another script in the place of the one that tries files, for this test alone."""

    def put(text):
        script = tmp_path / "helper.py"
        script.write_text(text)
        monkeypatch.setattr(probe, "__file__", str(script))
        monkeypatch.setattr(hdf5, "_prober", hdf5._Prober())
        ours.append(hdf5._prober)

    ours = []
    yield put
    for one in ours:
        one._end()


def test_a_good_file_is_tried_in_a_process_that_stays(good):
    for values in (True, False):
        with open_hdf5(good, values=values) as file:
            assert read_dataset(file["numbers"], "numbers", good).tolist() == np.arange(12.0).reshape(3, 4).tolist()
    process = hdf5._prober._process
    assert process.pid != os.getpid()
    with open_hdf5(good) as file:
        assert read_dataset(file["group/packed"], "packed", good).shape == (1000, 100)
    assert hdf5._prober._process is process
    assert process.poll() is None


@pytest.mark.parametrize(
    "fate",
    ["os.abort()", "os._exit(0)", "signal.setitimer(signal.ITIMER_PROF, 0.2)\n    while True: pass"],
    ids=["crash", "end", "loop"],
)
def test_a_file_that_kills_the_process_that_tries_it_is_one_clear_error(good, helper, fate):
    helper(f"import os, signal, sys\nprint(1, flush=True)\nfor line in sys.stdin:\n    {fate}\n")
    other = good.with_name("other.h5")
    other.write_bytes(good.read_bytes())
    for path in (good, other):  # a new process for the next file
        with pytest.raises(ScanFileError, match=rf"{path.name}' is damaged .*crashes the HDF5 library or takes it for"):
            open_hdf5(path).__enter__()


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of processor time")
def test_a_file_that_takes_for_ever_is_tried_once_until_it_changes(good, helper):
    loop = "signal.setitimer(signal.ITIMER_PROF, 0.2)\n    while True: pass"
    helper(f"import signal, sys\nprint(1, flush=True)\nfor line in sys.stdin:\n    {loop}\n")
    tried = []
    for content in (good.read_bytes(), None, good.read_bytes() + b"more"):
        if content is not None:
            good.write_bytes(content)
        hdf5._prober._start()
        process = hdf5._prober._process
        with pytest.raises(ScanFileError, match="takes it for ever"):
            open_hdf5(good).__enter__()
        tried.append(hdf5._prober._process is not process)
    assert tried == [True, False, True]


@pytest.mark.parametrize("text", ["raise SystemExit(1)", "import no_such_module"])
def test_where_no_process_can_be_started_the_file_is_read_all_the_same(good, helper, text):
    helper(text)
    with open_hdf5(good) as file:
        assert file["numbers"].shape == (3, 4)


def test_what_the_process_says_is_in_the_error(good, helper):
    helper("import sys\nprint(1, flush=True)\nfor line in sys.stdin:\n    print('\"too much\"', flush=True)\n")
    with pytest.raises(ScanFileError, match=r"is damaged or cut short .*too much"):
        open_hdf5(good).__enter__()


def test_a_path_with_any_letters_is_tried(good):
    other = good.rename(good.with_name('Lunge_äöü_肺 "a\\b.h5'))
    with open_hdf5(other) as file:
        assert file["numbers"].shape == (3, 4)


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1024)}, {"chunks": (1, 1024), "compression": "gzip"}])
def test_a_dataset_that_promises_more_than_the_file_holds_is_not_allocated(tmp_path, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("k", (2**20, 2**40), "c8", **options)
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(ScanFileError, match=r"a\.h5': k has shape \(1048576, "):
        read_dataset(file["k"], "k", tmp_path / "a.h5")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory and looks at it in /proc")
@pytest.mark.parametrize("values", [True, False], ids=["to read", "to look at"])
def test_an_element_that_claims_gigabytes_is_refused_and_they_are_not_taken(tmp_path, values):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (3,), h5py.vlen_dtype("f4"))[2] = np.ones(1234, "f4")
    content, length = path.read_bytes(), struct.pack("<I", 1234)
    assert content.count(length) == 1
    path.write_bytes(content.replace(length, struct.pack("<I", 2**28)))  # 1 GiB, in a file of some kB
    with pytest.raises(ScanFileError, match="reading it takes more memory than its size explains"):
        open_hdf5(path, values=values).__enter__()
    status = Path(f"/proc/{hdf5._prober._process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 2**19  # 512 MiB


def test_an_attribute_of_absurd_size_is_none(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["large"], file.attrs["small"] = np.zeros(2**17), 3.0
    with h5py.File(tmp_path / "a.h5") as file:
        assert read_attribute(file, "large") is None
        assert read_attribute(file, "none") is None
        assert read_attribute(file, "small") == 3.0


def test_a_link_to_another_file_is_not_followed(good):
    with h5py.File(good, "r+") as file:
        file["away"] = h5py.ExternalLink("other.h5", "numbers")
        file["soft"] = h5py.SoftLink("/numbers")
        file["round"] = h5py.SoftLink("/")
    with h5py.File(good) as file:
        assert find(file, "away") is None
        assert find(file, "nothing") is None
        assert find(file, "soft").shape == (3, 4)
        assert sorted(member.name for member in probe.members(file) if isinstance(member, h5py.Dataset)) == [
            "/group/packed",
            "/numbers",
        ]


def test_a_type_that_no_computer_writes_is_refused(tmp_path):
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_fields(31, 20, 11, 0, 20)
    pair, odd_pair = (h5py.h5t.create(h5py.h5t.COMPOUND, 12) for _ in range(2))
    for compound, number in ((pair, h5py.h5t.IEEE_F32LE), (odd_pair, odd)):
        compound.insert(b"real", 0, number)
        compound.insert(b"imag", 4, h5py.h5t.IEEE_F64BE)
    kinds = {"odd": odd, "odd_pair": odd_pair, "pair": pair, "big": h5py.h5t.IEEE_F64BE, "whole": h5py.h5t.STD_I16BE}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, kind in kinds.items():
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((2,)))
    with h5py.File(tmp_path / "a.h5") as file:
        sound = {name: probe.is_sound(file[name].id.get_type()) for name in kinds}
        assert sound == {"odd": False, "odd_pair": False, "pair": True, "big": True, "whole": True}
        with pytest.raises(ScanFileError, match="odd_pair has numbers of a type that no computer writes"):
            read_dataset(file["odd_pair"], "odd_pair", tmp_path / "a.h5")
