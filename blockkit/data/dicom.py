"""Images as DICOM, for viewers and archives of a hospital."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from blockkit.checks import check_volume
from blockkit.data.files import check_is_file, check_voxel_size

DESCRIPTION = "blockkit, not for clinical use"
_LARGEST = 65535
# What an image takes from another one of the same examination, where that has it.
_OF_EXAMINATION = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientWeight",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "PatientPosition",
    "Manufacturer",
    "MagneticFieldStrength",
)


def save_dicom(
    folder: str | os.PathLike[str],
    image: Tensor,
    voxel_size: Sequence[float],
    *,
    like: str | os.PathLike[str] | None = None,
) -> None:
    """Write the magnitude of an image as a DICOM series: a file for each axial slice.

    Axes and position are those of :func:`~blockkit.data.formats.save_nifti`: z from head to feet, y from front to back,
    x from the patient's right to left, and voxel ``n // 2`` of each axis at 0 mm. So an oblique or shifted scan is not
    where it was in the scanner. The largest magnitude is stored as 65535; the rescale slope gives the image's own unit.

    Parameters
    ----------
    folder
        Where to write ``0001.dcm`` and so on. It must not exist yet, and appears once all is written.
    image
        Complex, shape ``(z, y, x)``.
    voxel_size
        ``(z, y, x)`` in mm.
    like
        A DICOM file of the same examination, from which patient, study and frame of reference are taken. None: an
        examination of its own, of nobody.

    Raises
    ------
    ImportError
        If pydicom is not installed.
    ValueError
        If shape or voxel size does not fit, or a value is not finite, or ``like`` is no DICOM.
    TypeError
        If ``image`` is not a complex tensor.
    FileExistsError
        If there is something at ``folder``.
    FileNotFoundError
        If the folder around it, or ``like``, does not exist.

    References
    ----------
    .. [1] DICOM PS3.3, A.4, MR Image Information Object Definition.

    Examples
    --------
    >>> bk.save_dicom("series", scan.reference, scan.voxel_size)
    >>> import pydicom
    >>> pydicom.dcmread("series/0001.dcm").pixel_array.shape  # y, x
    (12, 16)
    """
    pydicom = _import()
    check_volume(image, "image")
    sizes, target = check_voxel_size(voxel_size), Path(folder)
    if target.exists():
        raise FileExistsError(f"'{target}' exists. Expected the name of a new folder, since a series belongs together.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{target.parent}' to make '{target.name}' in. Make it first.")
    common = _series(pydicom, like)
    magnitude = image.detach().cpu().abs().double().numpy()
    slope = float(magnitude.max()) / _LARGEST or 1.0
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as name:
        series = Path(name) / "series"
        series.mkdir()
        for z, plane in enumerate(magnitude):
            stored = np.minimum(np.rint(plane / slope), _LARGEST).astype("<u2")
            place = _place(z, magnitude.shape, sizes)
            _slice(pydicom, common, stored, z + 1, slope, place).save_as(
                series / f"{z + 1:04d}.dcm", enforce_file_format=True
            )
        series.rename(target)


def _import() -> Any:
    try:
        import pydicom
        import pydicom.uid
    except ImportError as error:
        raise ImportError("save_dicom needs pydicom, which cannot be imported: pip install pydicom") from error
    return pydicom


def _series(pydicom: Any, like: str | os.PathLike[str] | None) -> Any:
    """Return what all images of the series share."""
    common = pydicom.Dataset()
    common.PatientName, common.PatientID = "nobody", ""
    common.PatientBirthDate = common.PatientSex = common.StudyDate = common.StudyTime = common.StudyID = ""
    common.AccessionNumber = common.ReferringPhysicianName = common.Manufacturer = ""
    common.PositionReferenceIndicator, common.PatientPosition = "", "HFS"
    common.StudyInstanceUID, common.FrameOfReferenceUID = (pydicom.uid.generate_uid() for _ in range(2))
    if like is not None:
        path = check_is_file(like, "DICOM file")
        try:
            other = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError) as error:
            raise ValueError(f"like is '{path}', expected a DICOM file: {error}") from error
        for keyword in _OF_EXAMINATION:
            if keyword in other:
                setattr(common, keyword, other[keyword].value)
    common.Modality, common.SeriesDescription, common.SeriesNumber = "MR", DESCRIPTION, 9001
    common.SeriesInstanceUID = pydicom.uid.generate_uid()
    common.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    common.ScanningSequence, common.SequenceVariant, common.ScanOptions = "RM", "NONE", ""
    common.MRAcquisitionType, common.EchoTime, common.RepetitionTime, common.EchoTrainLength = "3D", None, None, None
    common.SamplesPerPixel, common.PhotometricInterpretation, common.PixelRepresentation = 1, "MONOCHROME2", 0
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit = 15
    return common


def _place(z: int, shape: tuple[int, ...], sizes: tuple[float, float, float]) -> dict[str, Any]:
    """Return where the slice lies: DICOM's x, y, z grow to the patient's left, back and head."""
    nz, ny, nx = shape
    dz, dy, dx = sizes
    return {
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [_decimal(v) for v in (-(nx // 2) * dx, -(ny // 2) * dy, (nz // 2 - z) * dz)],
        "SliceLocation": _decimal((nz // 2 - z) * dz),
        "PixelSpacing": [_decimal(dy), _decimal(dx)],
        "SliceThickness": _decimal(dz),
        "SpacingBetweenSlices": _decimal(dz),
    }


def _slice(pydicom: Any, common: Any, stored: Any, number: int, slope: float, place: dict[str, Any]) -> Any:
    """Return one image of the series."""
    image = pydicom.Dataset()
    image.update(common)
    for keyword, value in place.items():
        setattr(image, keyword, value)
    image.SOPClassUID, image.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    image.InstanceNumber, (image.Rows, image.Columns) = number, stored.shape
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, _decimal(slope), "US"
    image.WindowCenter, image.WindowWidth = _decimal(slope * _LARGEST / 2), _decimal(slope * _LARGEST)
    image.PixelData = stored.tobytes()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return image


def _decimal(value: float) -> str:
    """Return a number in the sixteen characters that DICOM has for it."""
    return f"{value:.9g}"
