"""Write a scan as ISMRMRD (MRD 1), for others to read."""

import os

import h5py
import numpy as np
from torch import Tensor

from blockkit.data.files import written_beside
from blockkit.data.ismrmrd import AT_ONCE, MAPS
from blockkit.data.ismrmrd_header import ACQUISITION, NOISE, Space, make_header
from blockkit.data.raw import RawScan, as_raw
from blockkit.data.scan import Scan

_MOST_IN_READOUT = 2**16 - 1


def save_ismrmrd(path: str | os.PathLike[str], scan: Scan | RawScan) -> None:
    """Write a scan as ISMRMRD; a file that is there is replaced once the new one is whole.

    The trajectory is written in cycles/FOV, columns kx ky kz, and the XML header says so in its description. Noise
    goes first, flagged as such; maps as the array ``csm``. Encoded and reconstructed space are the same; what a scan
    does not know, such as the field strength, orientation and times, is 0. A reference is not written.

    Parameters
    ----------
    path
        Where to write, by custom with the ending ``.h5`` or ``.mrd``.
    scan
        What to write. A readout is one of ``n_readout`` samples, or 65535 where that is None.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.

    Examples
    --------
    >>> bk.save_ismrmrd("scan.mrd", scan)
    >>> torch.equal(bk.load_ismrmrd("scan.mrd").kspace, scan.kspace)
    True
    """
    raw = as_raw(scan)
    length = raw.n_readout if raw.n_readout and raw.n_readout <= _MOST_IN_READOUT else _MOST_IN_READOUT
    with written_beside(path) as part, h5py.File(part, "w") as file:
        group = file.create_group("dataset")
        xml = group.create_dataset("xml", (1,), h5py.string_dtype("utf-8"))
        xml[0] = make_header(Space(raw.image_shape, raw.fov), raw.n_coils, "cycles/FOV").decode()
        chunks = (min(AT_ONCE, 1 + raw.n_samples // length),)
        table = group.create_dataset("data", (0,), ACQUISITION, maxshape=(None,), chunks=chunks)
        if raw.noise is not None:
            _append(table, raw.noise, None, _MOST_IN_READOUT)
        _append(table, raw.kspace, raw.trajectory, length)
        if raw.maps is not None:
            pairs = np.dtype([("real", "<f4"), ("imag", "<f4")])
            maps = np.ascontiguousarray(raw.maps.detach().cpu().resolve_conj().numpy(), "<c8")
            group.create_dataset(MAPS, data=maps.view(pairs)[None], maxshape=(None, *maps.shape), compression="gzip")


def _append(table: h5py.Dataset, samples: Tensor, trajectory: Tensor | None, length: int) -> None:
    """Append readouts of ``length`` samples to a table; without a trajectory they are noise."""
    values = samples.detach().cpu().resolve_conj().resolve_neg().numpy()
    points = None if trajectory is None else trajectory.detach().cpu().resolve_neg().flip(1).numpy()
    starts = range(0, values.shape[1], length)
    for first in range(0, len(starts), AT_ONCE):
        some = starts[first : first + AT_ONCE]
        records = np.zeros(len(some), ACQUISITION)
        for record, start in zip(records, some, strict=True):
            readout = np.ascontiguousarray(values[:, start : start + length], "<c8")
            record["data"] = readout.view("<f4").ravel()
            record["traj"] = np.empty(0, "<f4") if points is None else points[start : start + length].ravel()
            head = record["head"]
            head["version"], head["flags"] = 1, 1 << (NOISE - 1) if points is None else 0
            head["number_of_samples"] = readout.shape[1]
            head["active_channels"] = head["available_channels"] = len(values)
            head["trajectory_dimensions"] = 0 if points is None else 3
            head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
        at = table.shape[0]
        table.resize(at + len(some), axis=0)
        records["head"]["scan_counter"] = np.arange(at, at + len(some))
        table[at:] = records
