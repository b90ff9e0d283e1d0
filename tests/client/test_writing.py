"""A mask repeats the scan's geometry to the bit, whatever its memory order."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import affine_of, phantom_volume, sampled, saved
from tests.support.stored_scans import AFFINE, SHAPE, values
from voxtile.errors import OutputError
from voxtile.io import writing
from voxtile.io.formats import voxels
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SAR", "PIL"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (12.0, -23.0, 31.0)])
def test_a_mask_repeats_the_scans_geometry_to_the_bit(
    tmp_path: Path, version: int, suffix: str, codes: str, angles: tuple[float, float, float]
) -> None:
    affine = affine_of(SHAPE, (0.9, 1.1, 2.3), codes, angles)
    scan = saved(tmp_path / f"scan{suffix}", sampled(SHAPE, affine).astype(np.int16), affine, version, qform=1, sform=4)
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 5
    write_image(mask_image(labels, open_scan([scan], ["T1"])), tmp_path / f"mask{suffix}")
    one, mask = nib.load(scan), nib.load(tmp_path / f"mask{suffix}")
    assert type(mask) is type(one)
    for field in (*writing.GEOMETRY_FIELDS, "dim"):
        np.testing.assert_array_equal(mask.header[field], one.header[field])
    np.testing.assert_array_equal(mask.header["pixdim"][:4], one.header["pixdim"][:4])
    np.testing.assert_array_equal(mask.affine, one.affine)
    np.testing.assert_array_equal(mask.get_qform(), one.get_qform())
    assert mask.get_data_dtype() == np.uint8
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels)


def test_a_mask_of_a_big_endian_scan_keeps_its_geometry(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values(), AFFINE, nib.Nifti1Header(endianness=">")), tmp_path / "scan.nii")
    write_image(mask_image(values() > 0, open_scan([tmp_path / "scan.nii"], ["T1"])), tmp_path / "mask.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, nib.load(tmp_path / "scan.nii").affine)


def test_nothing_but_geometry_is_repeated(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header["descrip"] = b"a name"
    image.header["db_name"] = b"a number"
    image.header["intent_name"] = b"a study"
    nib.save(image, tmp_path / "scan.nii")
    write_image(mask_image(values() > 0, open_scan([tmp_path / "scan.nii"], ["T1"])), tmp_path / "mask.nii")
    assert b"a n" not in (tmp_path / "mask.nii").read_bytes()
    assert b"a study" not in (tmp_path / "mask.nii").read_bytes()


def test_labels_take_the_smallest_type() -> None:
    volume = phantom_volume(SHAPE)
    assert mask_image(np.full(SHAPE, 255), volume).get_data_dtype() == np.uint8
    assert mask_image(np.full(SHAPE, 256), volume).get_data_dtype() == np.uint16
    assert mask_image(np.zeros(SHAPE, bool), volume).get_data_dtype() == np.uint8
    with pytest.raises(ValueError, match="shape"):
        mask_image(np.zeros((2, 2, 2), np.uint8), volume)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2)])
def test_any_memory_order_is_written_right(
    tmp_path: Path, suffix: str, axes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voxels, "WRITE_BYTES", 5000)  # several pieces
    labels = np.random.default_rng(1).integers(0, 4, (23, 37, 29)).astype(np.uint8)
    stored = np.ascontiguousarray(labels.transpose(axes)[::-1])[::-1].transpose(np.argsort(axes))
    path = tmp_path / f"mask{suffix}"
    write_image(mask_image(stored, phantom_volume(labels.shape)), path)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), labels)


def test_scores_are_written_as_channels(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).random((*SHAPE, 3)).astype(np.float32)
    write_image(mask_image(scores, phantom_volume(SHAPE)), tmp_path / "scores.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "scores.nii.gz").get_fdata(dtype=np.float32), scores)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    image = mask_image(values() > 0, phantom_volume(SHAPE))
    write_image(image, tmp_path / "one.nii.gz")
    write_image(image, tmp_path / "another name.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "another name.nii.gz").read_bytes()


def test_an_output_in_a_vanished_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(mask_image(values() > 0, phantom_volume(SHAPE)), tmp_path / "gone" / "mask.nii")
