"""The two headers of ISMRMRD: XML for the scan, and a record of fixed layout for each acquisition (readout)."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from blockkit.checks import Shape3
from blockkit.data.files import printable

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LONGEST = 2**24  # bytes of XML
UNIT_NAME = "unit"

NOISE = 19
# Flags, counted from 1, of acquisitions that are no part of the image: calibration alone, navigators, phase
# correction, feedback, dummies, surface coil correction, phase stabilization.
NOT_IMAGING = (20, 23, 24, 26, 27, 28, 29, 30, 31)
COUNTERS = ("slice", "contrast", "phase", "repetition", "set")  # several values of one of these are several images

_COUNTERS = [
    *((name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast")),
    *((name, "<u2") for name in ("phase", "repetition", "set", "segment")),
    ("user", "<u2", (8,)),
]
HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", np.dtype(_COUNTERS)),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
ACQUISITION = np.dtype([("head", HEAD), ("traj", h5py.vlen_dtype("<f4")), ("data", h5py.vlen_dtype("<f4"))])


@dataclass(frozen=True)
class Space:
    """A matrix over a field of view."""

    matrix: Shape3  # (z, y, x)
    fov: tuple[float, float, float]  # (z, y, x) in mm


@dataclass(frozen=True)
class Header:
    """What is needed of the XML."""

    encoded: Space
    recon: Space
    trajectory: str
    unit: str | None  # of the trajectory, if the header says so
    n_encodings: int


def parse_header(text: bytes) -> Header:
    """Return what is needed of an XML header.

    Raises
    ------
    ValueError
        If it is no XML, defines entities, or lacks the matrix or the field of view; the message names the field.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the XML header has {len(text)} bytes, expected at most {LONGEST}.")
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("the XML header has a DOCTYPE or defines entities, which ISMRMRD's never does.")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"the XML header cannot be read: {printable(error)}.") from error
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    encodings = root.findall("encoding")
    if not encodings:
        raise ValueError("the XML header has no <encoding>, which says the matrix and the field of view.")
    first = encodings[0]
    encoded = _space(first, "encodedSpace")
    recon = _space(first, "reconSpace") if first.find("reconSpace") is not None else encoded
    pairs = {p.findtext("name"): p.findtext("value") for p in first.iter("userParameterString")}
    return Header(encoded, recon, first.findtext("trajectory", "").strip(), pairs.get(UNIT_NAME), len(encodings))


def _space(encoding: ET.Element, name: str) -> Space:
    numbers: dict[str, list[float]] = {}
    for field in ("matrixSize", "fieldOfView_mm"):
        texts = [encoding.findtext(f"{name}/{field}/{axis}", "").strip() for axis in "zyx"]
        try:
            numbers[field] = [float(text) for text in texts]
        except ValueError:
            numbers[field] = []
        if not all(0 < n < 1e6 for n in numbers[field] or [0]):
            raise ValueError(f"the XML header has {name}/{field} (z, y, x) = {texts}, expected three positive numbers.")
    matrix = numbers["matrixSize"]
    if any(n != int(n) for n in matrix):
        raise ValueError(f"the XML header has {name}/matrixSize (z, y, x) = {matrix}, expected whole numbers.")
    z, y, x = (int(n) for n in matrix)
    fov_z, fov_y, fov_x = numbers["fieldOfView_mm"]
    return Space((z, y, x), (fov_z, fov_y, fov_x))


def make_header(space: Space, n_coils: int, unit: str) -> bytes:
    """Return the XML header of a scan whose encoded and reconstructed space are the same."""
    root = ET.Element("ismrmrdHeader", xmlns=NAMESPACE)
    _add(root, "acquisitionSystemInformation", {"receiverChannels": n_coils})
    _add(root, "experimentalConditions", {"H1resonanceFrequency_Hz": 0})
    encoding = ET.SubElement(root, "encoding")
    for name in ("encodedSpace", "reconSpace"):
        one = ET.SubElement(encoding, name)
        _add(one, "matrixSize", dict(zip("xyz", reversed(space.matrix), strict=True)))
        _add(one, "fieldOfView_mm", dict(zip("xyz", reversed(space.fov), strict=True)))
    ET.SubElement(encoding, "encodingLimits")
    ET.SubElement(encoding, "trajectory").text = "other"
    description = ET.SubElement(encoding, "trajectoryDescription")
    ET.SubElement(description, "identifier").text = "blockkit"
    _add(description, "userParameterString", {"name": UNIT_NAME, "value": unit})
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _add(parent: ET.Element, name: str, values: dict[str, Any]) -> None:
    element = ET.SubElement(parent, name)
    for key, value in values.items():
        ET.SubElement(element, key).text = str(value)


def has_flag(flags: Any, *numbers: int) -> Any:
    """Return which of ``flags`` (uint64) have one of the flags, which ISMRMRD counts from 1."""
    mask = np.uint64(sum(1 << (number - 1) for number in numbers))
    return (flags & mask) != 0
