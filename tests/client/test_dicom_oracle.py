"""A DICOM series is the scan that SimpleITK, highdicom and dcm2niix read, wherever these are right."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.support.dicom_series import saved, slices
from tests.support.phantoms import ORIENTATIONS, affine_of, sampled
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (33, 35, 9)
HANDED = [codes for codes in ORIENTATIONS if np.linalg.det(affine_of((4, 4, 4), codes=codes)[:3, :3]) > 0]
"""Half of all orders of axes: the third axis is the first times the second, as a series always gives it."""


def series(tmp_path: Path, codes: str, **tags: Any) -> tuple[Path, Volume]:
    affine = affine_of(SHAPE, (0.9, 1.1, 2.2), codes, (9.0, 5.0, -3.0))
    voxels = np.rint(sampled(SHAPE, affine)).astype(np.int16)
    folder = saved(slices(voxels, affine, **tags), tmp_path / "series", lambda number: f"{(number * 4) % 9}.dcm")
    volume = open_scan(folder, ["scan"])
    assert np.abs(volume.data[0] - voxels * float(tags.get("slope", 1)) - tags.get("intercept", 0)).max() < 1e-3
    return folder, volume


@pytest.mark.parametrize("codes", HANDED[::3])
def test_it_is_what_simpleitk_reads(codes: str, tmp_path: Path) -> None:
    folder, volume = series(tmp_path, codes, slope=2.0, intercept=-1000.0)
    reader: Any = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    there = open_scan(image, ["scan"])
    np.testing.assert_array_equal(volume.data, there.data)
    np.testing.assert_allclose(volume.affine, there.affine, atol=1e-5)


@pytest.mark.parametrize("codes", HANDED[1::3])
def test_it_is_what_highdicom_reads(codes: str, tmp_path: Path) -> None:
    folder, volume = series(tmp_path, codes, slope=0.5)
    there = highdicom.get_volume_from_series(
        [highdicom.imread(path) for path in sorted(folder.iterdir())], dtype=np.float64
    )
    aligned = there.to_patient_orientation("RAS")
    ours = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(volume.data[0], np.float64), volume.affine))
    np.testing.assert_array_equal(ours.get_fdata(), aligned.array)
    np.testing.assert_allclose(ours.affine, np.diag([-1, -1, 1, 1]) @ aligned.affine, atol=1e-5)


def test_an_enhanced_object_is_the_series_that_it_was_made_from(tmp_path: Path) -> None:
    affine = affine_of(SHAPE, (0.9, 1.1, 2.2), "LPS", (9.0, 5.0, -3.0))
    voxels = np.rint(sampled(SHAPE, affine)).astype(np.int16)
    objects = slices(voxels, affine, "MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(objects[::-1], highdicom.UID(), 9, highdicom.UID(), 1)
    enhanced.save_as(tmp_path / "enhanced.dcm")
    volume = open_scan(tmp_path / "enhanced.dcm", ["scan"])
    np.testing.assert_array_equal(volume.data[0], voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert volume.native.multi_frame
    assert [frame for _, frame in volume.native.planes] == list(range(SHAPE[2], 0, -1))


@pytest.mark.system
@pytest.mark.parametrize("codes", HANDED[2::5])
def test_it_is_what_dcm2niix_writes(codes: str, tmp_path: Path) -> None:
    folder, volume = series(tmp_path, codes, slope=2.0, intercept=-1000.0)
    command = ["dcm2niix", "-f", "scan", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    there = nib.as_closest_canonical(nib.load(tmp_path / "scan.nii"))
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.data[0], volume.affine))
    np.testing.assert_array_equal(ours.get_fdata(), there.get_fdata())
    np.testing.assert_allclose(ours.affine, there.affine, atol=1e-4)
