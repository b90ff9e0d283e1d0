"""A DICOM series has the labels that the same voxels have as NIfTI, on the same sides, whatever its objects are."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.support import dicom_findings as made
from tests.support.dicom_series import saved, slices
from tests.support.in_memory import InMemoryTransport
from voxtile.segmenter import Segmenter

VOXELS, AFFINE = made.scan((33, 37, 9), angles=(11.0, -6.0, 8.0))
SLOPES = [0.5 + 0.25 * (k % 3) for k in range(VOXELS.shape[2])]

Stored = Callable[[Path], Any]


def objects(**tags: Any) -> list[FileDataset]:
    return slices(VOXELS, AFFINE, **tags)


def _packed(syntax: str) -> Stored:
    def store(folder: Path) -> Path:
        series = objects(intercept=-24.0)
        for one in series:
            one.compress(syntax, generate_instance_uid=False)
        return saved(series, folder)

    return store


def _zipped(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(saved(objects(intercept=-24.0), folder).iterdir()):
            packed.write(path, f"study/{path.name}")
    return archive


def _enhanced(folder: Path) -> Path:
    series = slices(VOXELS, AFFINE, "MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"], intercept=-24.0)
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(series[::-1], highdicom.UID(), 9, highdicom.UID(), 1)
    folder.mkdir()
    whole.save_as(folder / "whole.dcm")
    return folder / "whole.dcm"


def _study(folder: Path) -> Path:
    series = objects(intercept=-24.0)
    scout = slices(VOXELS[:, :, :1], AFFINE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for one in scout:
        one.StudyInstanceUID, one.SeriesNumber = series[0].StudyInstanceUID, 1
    saved(scout, folder / "1")
    saved(series, folder / "2")
    return folder


STORED: dict[str, Stored] = {
    "plain": lambda folder: saved(objects(intercept=-24.0), folder),
    "from the last slice to the first": lambda folder: saved(objects(intercept=-24.0)[::-1], folder),
    "interleaved": lambda folder: saved(objects(intercept=-24.0), folder, lambda number: f"{number * 4 % 9}"),
    "JPEG 2000": _packed(JPEG2000Lossless),
    "JPEG-LS": _packed(JPEGLSLossless),
    "RLE": _packed(RLELossless),
    "zip": _zipped,
    "enhanced": _enhanced,
    "a study": _study,
}


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        """Scores that depend on the value and, by its neighbours, on the direction of each axis."""
        value = np.clip(tiles[:, :1], -5000, 5000)  # tiles are padded with the lowest number
        ahead = [value - np.roll(value, step, axis) for axis, step in ((2, 1), (3, 2), (4, 1))]
        return np.concatenate([np.full_like(value, 60.0), value - 150, *ahead], axis=1).astype(np.float32)

    return Segmenter(transport=InMemoryTransport(made.card_for(), network))


def labels_of(segmenter: Segmenter, scan: Any) -> tuple[Any, Any]:
    """The labels in the order and directions of RAS, and where they lie."""
    found = segmenter.segment(scan)
    image = nib.as_closest_canonical(found.mask)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("how", STORED)
def test_labels_are_those_of_the_same_voxels_as_nifti(how: str, segmenter: Segmenter, tmp_path: Path) -> None:
    place = STORED[how](tmp_path / "series")
    nib.save(nib.Nifti1Image(VOXELS - 24, AFFINE), tmp_path / "scan.nii.gz")
    ours, theirs = labels_of(segmenter, place), labels_of(segmenter, tmp_path / "scan.nii.gz")
    assert len(np.unique(ours[0])) == 5
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_labels_of_a_slope_a_slice(segmenter: Segmenter, tmp_path: Path) -> None:
    values = (VOXELS * np.array(SLOPES) - 24).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "scan.nii.gz")
    place = saved(objects(slope=SLOPES, intercept=-24.0), tmp_path / "series")
    np.testing.assert_array_equal(labels_of(segmenter, place)[0], labels_of(segmenter, tmp_path / "scan.nii.gz")[0])
