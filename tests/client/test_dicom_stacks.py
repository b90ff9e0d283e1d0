"""Slices that are no one scan are never read as one, and slices that are one are never torn apart in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from tests.support.dicom_series import saved, set_pixels, slices
from tests.support.phantoms import affine_of
from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (7, 6, 12)
AFFINE = affine_of(SHAPE, (1.0, 1.5, 2.0), "LPS", (8.0, 0.0, -5.0))
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
ALONG = AFFINE[:3, 2] / 2.0

Change = Callable[[list[FileDataset]], None]


def made(voxels: Any = VOXELS, affine: Any = AFFINE, like: FileDataset | None = None, **tags: Any) -> list[FileDataset]:
    """A series; of the same series as `like` on request."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return slices(voxels, affine, **({} if like is None else {one: like[one].value for one in keywords}), **tags)


def opened(place: Path, **choice: Any) -> Volume:
    return open_scan(place, ["scan"], given=Given(dicom=SeriesChoice(**choice)))


def placed(one: FileDataset, millimetres: float) -> None:
    """Puts a slice at a place along the normal, counted from that of the series' first."""
    point = (AFFINE[:3, 3] + ALONG * millimetres) * (-1, -1, 1)
    one.ImagePositionPatient = [f"{x:.8f}"[:16] for x in point]


def each(objects: list[FileDataset], keyword: str, values: Any) -> list[FileDataset]:
    for one, value in zip(objects, values, strict=True):
        setattr(one, keyword, value)
    return objects


# One series that is several scans ------------------------------------------------------------------------------


CONTRASTS = {"ConvolutionKernel": "BH", "EchoTime": (10, 80), "DiffusionBValue": (0.0, 1000.0), "EchoNumbers": (1, 2)}


@pytest.mark.parametrize("order", ["alternating", "one after the other"])
@pytest.mark.parametrize("keyword", CONTRASTS)
def test_even_slices_of_two_contrasts_are_two_scans(keyword: str, order: str, tmp_path: Path) -> None:
    one, other = CONTRASTS[keyword]
    values = [one, other] * 6 if order == "alternating" else [one] * 6 + [other] * 6
    folder = saved(each(made(), keyword, values), tmp_path)
    with pytest.raises(InputError, match=r"several that could be meant: series 2:1 .*× 6\), series 2:2 .*× 6\)"):
        opened(folder)
    there = opened(folder, series=("2:1",)).data[0]
    np.testing.assert_array_equal(there, VOXELS[:, :, ::2] if order == "alternating" else VOXELS[:, :, :6])


def test_what_differs_by_time_alone_is_one_scan(tmp_path: Path) -> None:
    objects = each(made(), "AcquisitionTime", ["100000", "110000"] * 6)
    np.testing.assert_array_equal(opened(saved(objects, tmp_path)).data[0], VOXELS)


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "KVP", "ContentTime"])
def test_missing_slices_between_acquisitions_are_a_gap(keyword: str, tmp_path: Path) -> None:
    objects = each(made(), keyword, ["100000"] * 6 + ["100001"] * 6)
    folder = saved(objects[:5] + objects[6:], tmp_path)
    with pytest.raises(InputError, match=r"1 wider gap, up to 4 mm .*0004\.dcm and .*0005\.dcm: 1 slices are missing"):
        opened(folder)
    assert opened(folder, gaps="fill").shape == SHAPE


def test_two_ranges_with_distances_of_their_own_are_two_scans(tmp_path: Path) -> None:
    objects = each(made(), "AcquisitionNumber", [1] * 6 + [2] * 6)
    for number, one in enumerate(objects[6:]):
        placed(one, 12 + 4 * number)
    folder = saved(objects, tmp_path)
    with pytest.raises(InputError, match=r"series 2:1 .*series 2:2"):
        opened(folder, gaps="fill")
    np.testing.assert_array_equal(opened(folder, series=("2:2",)).data[0], VOXELS[:, :, 6:])


def test_acquisitions_that_lie_between_each_other_are_two_scans(tmp_path: Path) -> None:
    objects = each(made(), "AcquisitionNumber", [1, 2] * 6)
    for number, one in enumerate(objects):
        placed(one, 4 * (number // 2) + 1.3 * (number % 2))
    np.testing.assert_array_equal(opened(saved(objects, tmp_path), series=("2:2",)).data[0], VOXELS[:, :, 1::2])


def twice(tags: dict[str, Any]) -> list[FileDataset]:
    """Two slices at each place; `tags` says of each keyword what each of the 24 slices has."""
    one = made()
    both = one + made(VOXELS + 1000, like=one[0])
    for keyword, values in tags.items():
        each(both, keyword, values)
    return both


def test_a_contrast_counts_before_a_number_that_mixes_it(tmp_path: Path) -> None:
    mixed = ([1, 2] * 6) + ([2, 1] * 6)
    folder = saved(twice({"EchoTime": [10] * 12 + [80] * 12, "AcquisitionNumber": mixed}), tmp_path)
    np.testing.assert_array_equal(opened(folder, series=("2:1",)).data[0], VOXELS)
    np.testing.assert_array_equal(opened(folder, series=("2:2",)).data[0], VOXELS + 1000)


def test_two_ways_to_part_slices_are_none(tmp_path: Path) -> None:
    mixed = ([1, 2] * 6) + ([2, 1] * 6)
    tags = {"TemporalPositionIdentifier": [1] * 12 + [2] * 12, "AcquisitionNumber": mixed}
    with pytest.raises(InputError, match=r"found two at one: .*no tag says for certain"):
        opened(saved(twice(tags), tmp_path))


def test_echoes_and_phases_are_parted_together(tmp_path: Path) -> None:
    one = made(EchoTime=10, TemporalPositionIdentifier=1)
    both = list(one)
    for number, (echo, phase) in enumerate([(10, 2), (80, 1), (80, 2)], 1):
        both += made(VOXELS + 1000 * number, like=one[0], EchoTime=echo, TemporalPositionIdentifier=phase)
    folder = saved(both, tmp_path)
    found = {int(opened(folder, series=(f"2:{number}",)).data[0, 0, 0, 0]) for number in (1, 2, 3, 4)}
    assert found == {0, 1000, 2000, 3000}


def test_b_values_that_the_sequence_alone_tells_are_parted(tmp_path: Path) -> None:
    folder = saved(twice({"SequenceName": ["*ep_b0"] * 12 + ["*ep_b1000t"] * 12}), tmp_path)
    np.testing.assert_array_equal(opened(folder, series=("2:2",)).data[0], VOXELS + 1000)


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_slices_of_two_patients_are_never_one_scan(keyword: str, tmp_path: Path) -> None:
    values = [generate_uid(), generate_uid()] if keyword.endswith("UID") else ["Somebody", "Other"]
    folder = saved(each(made(), keyword, np.repeat(values, 6).tolist()), tmp_path)
    with pytest.raises(InputError, match=r"series 2:1 .*× 6\), series 2:2") as refused:
        opened(folder)
    assert "Somebody" not in str(refused.value)


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "Modality"])
def test_end_slices_that_lost_a_tag_are_told(keyword: str, tmp_path: Path) -> None:
    objects = made()
    for one in objects[-3:]:
        setattr(one, keyword, None)
    with pytest.raises(InputError, match=r"series 2:1 .*× 9\), series 2:2 .*× 3\)"):
        opened(saved(objects, tmp_path))


@pytest.mark.parametrize("keyword", ["size", "PixelSpacing", "ImageOrientationPatient"])
def test_end_slices_of_another_plane_are_told(keyword: str, tmp_path: Path) -> None:
    objects = made()
    for one in objects[-2:]:
        if keyword == "size":
            set_pixels(one, np.zeros((9, 6), np.int16))
        else:
            values = [float(x) for x in one[keyword].value]
            bent = np.array(values[:3]) + 0.05 * np.cross(values[:3], values[3:]) if len(values) == 6 else None
            spacing = [x * 1.01 for x in values]
            one[keyword].value = spacing if bent is None else [*(bent / np.linalg.norm(bent)), *values[3:]]
    folder = saved(objects, tmp_path)
    with pytest.raises(InputError, match=r"series 2:1 .*× 10\), series 2:2 .*× 2\)"):
        opened(folder)
    assert opened(folder, series=("2:1",)).shape == (7, 6, 10)


def test_a_single_twin_is_no_scan_of_its_own(tmp_path: Path) -> None:
    objects = made(AcquisitionNumber=1)
    twin = made(like=objects[0], AcquisitionNumber=2)[5]
    with pytest.raises(InputError, match="two at one"):
        opened(saved([*objects, twin], tmp_path), series=("2:1",))


def test_a_few_slices_across_the_others_are_an_overview(tmp_path: Path) -> None:
    objects = made()
    across = made(VOXELS[:, :, :2], affine_of((7, 6, 2), (4.0, 4.0, 9.0), codes="LSA"), like=objects[0])
    volume = opened(saved([*across, *objects], tmp_path))
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert "left out: series 2:2 (CT, 7 × 6 × 2)" in volume.warnings[0]


def test_end_slices_that_were_moved_are_told(tmp_path: Path) -> None:
    objects = made()
    for one in objects[-2:]:
        one.ImagePositionPatient = [float(x) + 30 for x in one.ImagePositionPatient]
    with pytest.raises(InputError):
        opened(saved(objects, tmp_path))


# Which is the scan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        ({"PatientID": "P2"}, r"PatientID \(0010,0020\)"),
        ({"PatientName": "A^B"}, r"PatientName \(0010,0010\)"),
        ({"PatientID": "P2", "PatientName": "A^B"}, r"PatientID \(0010,0020\) and PatientName \(0010,0010\)"),
        ({"StudyInstanceUID": "1.2.3"}, r"StudyInstanceUID \(0020,000D\)"),
    ],
    ids=["patient", "name", "both", "study"],
)
def test_scans_of_two_patients_or_studies_are_not_chosen_by_length(
    other: dict[str, Any], differ: str, tmp_path: Path
) -> None:
    one = made(VOXELS[:, :, :9], SeriesNumber=3)
    same = {"StudyInstanceUID": one[0].StudyInstanceUID, "SeriesNumber": 4, **other}
    saved(one, tmp_path / "a")
    saved(made(**same), tmp_path / "b")
    with pytest.raises(InputError, match=rf"of one (patient|study), found 2 \({differ}\): .*--series 4"):
        opened(tmp_path)
    assert opened(tmp_path, series=("3",)).shape[2] == 9


@pytest.mark.parametrize("count", [0, -1])
def test_an_object_has_a_frame(count: int, tmp_path: Path) -> None:
    objects = made()
    objects[-1].NumberOfFrames = count
    with pytest.raises(InputError, match=rf"from 1 on as NumberOfFrames \(0028,0008\), found {count};"):
        opened(saved(objects, tmp_path))


def test_of_several_series_that_could_be_meant_the_longest_is_proposed(tmp_path: Path) -> None:
    short, long = made(VOXELS[:, :, :5], ConvolutionKernel="B30"), made(VOXELS[:, :, :9], ConvolutionKernel="B60")
    for one in (*short, *long):
        one.SeriesInstanceUID, one.SeriesNumber = "1.2.3", 2
        one.StudyInstanceUID, one.FrameOfReferenceUID = "1.2.4", "1.2.5"
    folder = saved([*short, *long], tmp_path)
    with pytest.raises(InputError, match=r"could be meant: .*; say which: --series (\d:\d)$") as refused:
        opened(folder)
    assert opened(folder, series=(str(refused.value).rpartition(" ")[2],)).shape[2] == 9


def test_a_number_that_two_patients_series_have_names_none(tmp_path: Path) -> None:
    saved(made(), tmp_path / "a")
    saved(made(VOXELS[:, :, :9], PatientID="P2"), tmp_path / "b")
    with pytest.raises(InputError, match=r"one patient, found 2 .*--series 2:1"):
        opened(tmp_path, series=("2",))
    assert opened(tmp_path, series=("2:2",)).shape[2] == 9


def test_one_picture_is_no_scan_beside_what_was_made_of_the_scan(tmp_path: Path) -> None:
    one = made(VOXELS[:, :, :1], SeriesNumber=1)
    same = {"StudyInstanceUID": one[0].StudyInstanceUID, "ImageType": ["DERIVED", "SECONDARY"]}
    saved(one, tmp_path / "a")
    saved(made(SeriesNumber=2, **same), tmp_path / "b")
    with pytest.raises(InputError, match=r"could be meant: series 1 .*, series 2 .*derived\); say which: --series 2"):
        opened(tmp_path)
    np.testing.assert_array_equal(opened(tmp_path, series=("2",)).data[0], VOXELS)


# One series is one scan, whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [2.1, 1.9, 2.06], ids=str)
def test_a_distance_that_changes_within_is_no_jitter(second: float, tmp_path: Path) -> None:
    objects = made(np.zeros((7, 6, 60), np.int16))
    for number, one in enumerate(objects):
        placed(one, 2 * min(number, 30) + second * max(number - 30, 0))
    with pytest.raises(InputError, match="at even distances, found"):
        opened(saved(objects, tmp_path), gaps="fill")


def test_more_gaps_than_slices_are_not_filled(tmp_path: Path) -> None:
    objects = made()
    folder = saved([objects[k] for k in (0, 1, 5, 11)], tmp_path)
    with pytest.raises(InputError, match="at even distances, found 2 to 12 mm"):
        opened(folder, gaps="fill")


def test_filled_gaps_keep_every_slice_in_its_place(tmp_path: Path) -> None:
    objects = made(np.zeros((7, 6, 60), np.int16))
    for number, one in enumerate(objects):
        placed(one, 2.12 * number if number < 30 else 2.12 * 29 + 4 + 2 * (number - 30))
    with pytest.raises(InputError, match="at even distances, found"):
        opened(saved(objects, tmp_path), gaps="fill")


def concatenation(folder: Path, total: int | None) -> list[Path]:
    """An enhanced object that was cut into two; each says how many there are."""
    objects = made(modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    series, whole = generate_uid(), generate_uid()
    paths = []
    for number, part in enumerate((objects[:5], objects[5:]), 1):
        one: Any = highdicom.legacy.LegacyConvertedEnhancedMRImage(part, series, 9, generate_uid(), number)
        one.ConcatenationUID, one.InConcatenationNumber = whole, number
        if total:
            one.InConcatenationTotalNumber = total
        folder.mkdir(exist_ok=True)
        paths.append(folder / f"{number}.dcm")
        one.save_as(paths[-1])
    return paths


def test_an_object_that_was_cut_is_read_whole_or_not(tmp_path: Path) -> None:
    _, last = concatenation(tmp_path / "two", 2)
    np.testing.assert_array_equal(opened(tmp_path / "two").data[0], VOXELS)
    with pytest.raises(InputError, match="expected 2 objects, as InConcatenationTotalNumber"):
        opened(last)


def test_a_part_that_is_missing_is_missed(tmp_path: Path) -> None:
    concatenation(tmp_path / "two", 3)
    with pytest.raises(InputError, match=r"expected 3 objects, .*found 2"):
        opened(tmp_path / "two")


def test_an_object_that_is_in_a_concatenation_and_has_no_place_in_it_is_read(tmp_path: Path) -> None:
    folder = saved(each(made(), "ConcatenationUID", ["1.2.3"] * 12), tmp_path)
    np.testing.assert_array_equal(opened(folder).data[0], VOXELS)


def test_a_last_part_alone_says_that_others_came_before_it(tmp_path: Path) -> None:
    _, last = concatenation(tmp_path / "two", None)
    alone = last.rename(tmp_path / "alone.dcm")
    with pytest.raises(InputError, match=r"expected 2 objects, as InConcatenationTotalNumber .*found 1"):
        opened(alone)


def test_an_object_of_all_slices_beside_another_time_of_them_is_a_scan(tmp_path: Path) -> None:
    objects = made(modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    series = generate_uid()
    for number in (1, 2):
        one: Any = highdicom.legacy.LegacyConvertedEnhancedMRImage(objects, series, 9, generate_uid(), number)
        one.save_as(tmp_path / f"{number}.dcm")
    np.testing.assert_array_equal(opened(tmp_path / "2.dcm").data[0], VOXELS)
    with pytest.raises(InputError, match="two at one"):
        opened(tmp_path)


def test_a_part_with_the_other_beside_it_is_refused(tmp_path: Path) -> None:
    first, _ = concatenation(tmp_path / "two", None)
    with pytest.raises(InputError, match=r"found 5 of them, with 7 more beside it"):
        opened(first)


# Copies --------------------------------------------------------------------------------------------------------


def test_a_copy_with_other_pixels_is_refused(tmp_path: Path) -> None:
    objects = made()
    saved(objects, tmp_path / "a")
    set_pixels(objects[3], VOXELS[:, :, 3] + 1)
    saved(objects[3:4], tmp_path / "b")
    with pytest.raises(InputError, match=r"equal pixels in objects of one SOPInstanceUID .*a/0003\.dcm|b/0000\.dcm"):
        opened(tmp_path)


def test_a_copy_with_another_slope_is_refused(tmp_path: Path) -> None:
    objects = made()
    saved(objects, tmp_path / "a")
    objects[3].RescaleIntercept = -1024
    saved(objects[3:4], tmp_path / "b")
    with pytest.raises(InputError, match="two at one"):
        opened(tmp_path)


def test_one_uid_in_two_series_is_no_copy(tmp_path: Path) -> None:
    one = made(SeriesNumber=3)
    other = made(VOXELS + 5, SeriesNumber=4, StudyInstanceUID=one[0].StudyInstanceUID)
    each(other, "SOPInstanceUID", [each_one.SOPInstanceUID for each_one in one])
    saved(one, tmp_path / "a")
    saved(other, tmp_path / "b")
    np.testing.assert_array_equal(opened(tmp_path, series=("3",)).data[0], VOXELS)
    np.testing.assert_array_equal(opened(tmp_path, series=("4",)).data[0], VOXELS + 5)


# A tilted gantry -----------------------------------------------------------------------------------------------


def leaning(degrees: float) -> np.ndarray[Any, Any]:
    affine = affine_of(SHAPE, (1.0, 1.0, 2.0), "LPS")
    affine[:3, 2] += affine[:3, 1] * 2.0 * np.tan(np.radians(degrees))
    return affine


@pytest.mark.parametrize("degrees", [26.565, -26.565], ids=["ahead", "back"])  # one pixel a slice
@pytest.mark.parametrize("slope", [1.0, -2.0])
def test_straightening_cuts_nothing_off(degrees: float, slope: float, tmp_path: Path) -> None:
    affine = leaning(degrees)
    volume = opened(saved(slices(VOXELS, affine, slope=slope), tmp_path), tilt="straighten")
    assert volume.shape == (7, 6 + 11, 12)
    assert volume.native.on_frames(np.asarray(volume.data[0])).shape == SHAPE
    np.testing.assert_allclose(volume.native.on_frames(np.asarray(volume.data[0])), VOXELS * slope, atol=abs(slope))
    assert volume.data[0].min() == (VOXELS * slope).min()
    outside = np.ones(volume.shape, bool)
    for k, (i, j) in enumerate(np.rint(volume.native.shifts).astype(int)):
        outside[i : i + 7, max(j - 1, 0) : j + 7, k] = False
    assert (volume.data[0][outside] == (VOXELS * slope).min()).all()
    for k in (0, 11):
        there = volume.affine @ (*volume.native.shifts[k], k, 1)
        np.testing.assert_allclose(there, affine @ (0, 0, k, 1), atol=1e-5)


def test_a_gap_in_a_tilted_scan_is_filled_behind_each_other(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.int16)
    for k in range(12):  # one straight bar, across the slices
        voxels[3, (-k) % 6, k] = 100 if k < 6 else 0
    objects = slices(voxels, leaning(26.565))
    del objects[2]
    volume = opened(saved(objects, tmp_path), tilt="straighten", gaps="fill")
    (bar,) = np.unique(np.argmax(volume.data[0][3, :, 1:5], axis=0))
    assert volume.data[0][3, bar, 2] == 100


def test_a_tilt_that_no_gantry_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"45 degrees at most, found 60\.00"):
        opened(saved(slices(VOXELS, leaning(60)), tmp_path), tilt="straighten")
