"""Scans of real scanners are what other readers make of them: those in pydicom, nibabel and TotalSegmentator."""

from __future__ import annotations

import gzip
import subprocess
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from tests.support.sdists import unpacked
from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

STUDY = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001"
NIBABEL = Path(nib.__file__).parent / "nicom/tests/data"


def opened(place: Any, **choice: Any) -> Volume:
    return open_scan(place, ["scan"], given=Given(dicom=SeriesChoice(**choice)))


def in_ras(array: Any, affine: Any) -> tuple[Any, Any]:
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(array, np.float64), affine))
    return image.get_fdata(), image.affine


def assert_is(volume: Volume, array: Any, affine: Any, atol: float = 1e-4) -> None:
    ours, theirs = in_ras(volume.data[0], volume.affine), in_ras(array, affine)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-3)
    np.testing.assert_allclose(ours[1], theirs[1], atol=atol)


def itk(folder: Path) -> Volume:
    reader: Any = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return open_scan(reader.Execute(), ["scan"])


def test_a_ct_of_a_study_with_localizers() -> None:
    volume = opened(STUDY)
    there = itk(STUDY / "CT5N")
    assert_is(volume, there.data[0], there.affine)
    assert "series 5 (CT, 16 × 16 × 5) is taken" in volume.warnings[0]


def test_an_enhanced_mr_of_philips(tmp_path: Path) -> None:
    path = tmp_path / "mprage.dcm"
    path.write_bytes(gzip.decompress((NIBABEL / "philips_mprage.dcm.gz").read_bytes()))
    assert_is(opened(path), *by_nibabel(path), atol=0.01)  # it takes the distance from a tag, not from the positions


@pytest.mark.system
def test_a_ct_of_siemens_in_jpeg_2000(tmp_path: Path) -> None:
    sha256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
    files = unpacked("totalsegmentator==2.18.0", sha256, tmp_path) / "tests/reference_files"
    volume = opened(files / "example_ct_dicom")
    there = itk(files / "example_ct_dicom")
    assert_is(volume, there.data[0], there.affine)
    command = ["dcm2niix", "-f", "scan", "-o", str(tmp_path), str(files / "example_ct_dicom")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    by_dcm2niix = nib.load(tmp_path / "scan.nii")
    assert_is(volume, by_dcm2niix.dataobj, by_dcm2niix.affine, atol=1e-3)
    mask = nib.load(files / "example_seg_dicom.nii.gz")
    np.testing.assert_allclose(
        in_ras(volume.data[0], volume.affine)[1], nib.as_closest_canonical(mask).affine, atol=1e-3
    )


@pytest.mark.system
def test_an_enhanced_mr_of_two_times(tmp_path: Path) -> None:
    sha256 = "d5f4b9076a13178ae7f7acf18c8dbd503ee1c4d5c0c23b85df7be87efcbb49da"
    path = unpacked("nibabel==5.4.2", sha256, tmp_path) / "nibabel/nicom/tests/data/4d_multiframe_test.dcm"
    with pytest.raises(InputError, match=r"several that could be meant: .*× 56\)"):
        opened(path)
    voxels, affine = by_nibabel(path)
    for number in (1, 2):
        volume = opened(path, series=(f"{number_of_series(path)}:{number}",))
        assert_is(volume, voxels[..., number - 1], affine)


def by_nibabel(path: Path) -> tuple[Any, Any]:
    """What nibabel reads of an enhanced object: its voxels, and the affine to RAS millimetres."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental, and misses a private factor
        from nibabel.nicom import dicomwrappers

        there = dicomwrappers.wrapper_from_file(path)
        return there.get_data(), np.diag([-1, -1, 1, 1]) @ there.affine


def number_of_series(path: Path) -> int:
    return int(pydicom.dcmread(path, stop_before_pixels=True).SeriesNumber)
