"""DICOM out: a series that another program reads where NIfTI says that it is, and nothing half-written."""

import nibabel
import numpy as np
import pytest
import torch

from blockkit.data.dicom import DESCRIPTION, save_dicom
from blockkit.data.formats import save_nifti

pydicom = pytest.importorskip("pydicom")

VOXEL = (2.5, 1.25, 1.5)


@pytest.fixture
def image():
    return torch.randn(5, 6, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) * 3e-4


def read(folder):
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    volume = np.stack([file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept) for file in files])
    return files, volume


def test_the_values_come_back_to_half_a_step(image, tmp_path):
    save_dicom(tmp_path / "series", image, VOXEL)
    files, volume = read(tmp_path / "series")
    assert len(files) == 5
    assert np.abs(volume - image.abs().numpy()).max() <= 0.51 * float(files[0].RescaleSlope)


def test_each_voxel_lies_where_nifti_puts_it(image, tmp_path):
    save_dicom(tmp_path / "series", image, VOXEL)
    save_nifti(tmp_path / "image.nii", image, VOXEL)
    affine = nibabel.load(tmp_path / "image.nii").affine
    files, _ = read(tmp_path / "series")
    for z, y, x in ((0, 0, 0), (4, 5, 3), (2, 1, 3)):
        file = files[z]
        along_row, along_column = np.split(np.array(file.ImageOrientationPatient, float), 2)
        spacing_y, spacing_x = map(float, file.PixelSpacing)
        lps = np.array(file.ImagePositionPatient, float) + x * spacing_x * along_row + y * spacing_y * along_column
        ras = affine @ [x, y, z, 1]
        np.testing.assert_allclose(lps * [-1, -1, 1], ras[:3], atol=1e-5)


def test_patient_and_study_come_from_an_image_of_the_examination_and_the_series_is_new(image, tmp_path):
    save_dicom(tmp_path / "first", image, VOXEL)
    scanner = pydicom.dcmread(tmp_path / "first" / "0001.dcm")
    scanner.PatientName, scanner.PatientID, scanner.EchoTime = "Doe^Jane", "17", 1.5
    scanner.save_as(tmp_path / "scanner.dcm")
    save_dicom(tmp_path / "second", image, VOXEL, like=tmp_path / "scanner.dcm")
    files, _ = read(tmp_path / "second")
    for file in files:
        assert (file.PatientName, file.PatientID) == ("Doe^Jane", "17")
        assert file.StudyInstanceUID == scanner.StudyInstanceUID
        assert file.FrameOfReferenceUID == scanner.FrameOfReferenceUID
        assert file.SeriesInstanceUID != scanner.SeriesInstanceUID
        assert file.EchoTime is None
        assert file.SeriesDescription == DESCRIPTION
    assert len({file.SOPInstanceUID for file in files}) == 5
    assert len({file.SeriesInstanceUID for file in files}) == 1


def test_one_slice_and_an_image_of_zeros_are_written(tmp_path):
    save_dicom(tmp_path / "series", torch.zeros(1, 6, 4, dtype=torch.complex64), VOXEL)
    _, volume = read(tmp_path / "series")
    assert volume.shape == (1, 6, 4)
    assert not volume.any()


def test_what_is_there_stays_and_a_failed_run_leaves_nothing(image, tmp_path, monkeypatch):
    (tmp_path / "series").mkdir()
    with pytest.raises(FileExistsError, match=r"exists\. Expected the name of a new folder"):
        save_dicom(tmp_path / "series", image, VOXEL)
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(ValueError, match="expected a DICOM file"):
        save_dicom(tmp_path / "new", image, VOXEL, like=tmp_path / "text.dcm")
    with pytest.raises(FileNotFoundError, match="There is no DICOM file"):
        save_dicom(tmp_path / "new", image, VOXEL, like=tmp_path / "none.dcm")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(pydicom.Dataset, "save_as", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_dicom(tmp_path / "new", image, VOXEL)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image[0], r"expected \(z, y, x\). For one slice"),
        (lambda image: image * torch.nan, "NaN"),
    ],
)
def test_an_image_that_cannot_be_written_is_refused(change, message, image, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_dicom(tmp_path / "series", change(image), VOXEL)


def test_without_pydicom_it_says_what_to_type(image, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match="pip install pydicom"):
        save_dicom(tmp_path / "series", image, VOXEL)
