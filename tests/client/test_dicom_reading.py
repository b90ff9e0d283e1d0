"""A DICOM series is read as the scan that it is, however its objects are stored, ordered and named."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.dataset import FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.support.dicom_series import saved, set_pixels, slices
from tests.support.phantoms import affine_of, sampled
from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.source import Source
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (38, 33, 14)
SPACING = (1.2, 1.4, 2.5)
OBLIQUE = affine_of(SHAPE, SPACING, codes="LPS", angles=(12.0, -7.0, 4.0))
VOXELS = np.rint(sampled(SHAPE, OBLIQUE)).astype(np.int16)


def made(**changes: Any) -> list[FileDataset]:
    return slices(VOXELS, OBLIQUE, **changes)


def opened(place: Any, **choice: Any) -> Volume:
    return open_scan(place, ["scan"], given=Given(dicom=SeriesChoice(**choice)))


def assert_is_the_scan(volume: Volume, atol: float = 1e-6) -> None:
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=atol)


# However it is stored ------------------------------------------------------------------------------------------


def _compressed(syntax: str) -> Callable[[list[FileDataset]], None]:
    def compress(objects: list[FileDataset]) -> None:
        for one in objects:
            one.compress(syntax, generate_instance_uid=False)

    return compress


def _as(syntax: Any) -> Callable[[list[FileDataset]], None]:
    def change(objects: list[FileDataset]) -> None:
        for one in objects:
            one.file_meta.TransferSyntaxUID = syntax

    return change


def _big_endian(objects: list[FileDataset]) -> None:
    for place, one in enumerate(objects):
        one.PixelData = np.frombuffer(one.PixelData, "<i2").astype(">i2").tobytes()
        one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        objects[place] = FileDataset(
            "", dict(one), preamble=one.preamble, file_meta=one.file_meta, is_implicit_VR=False, is_little_endian=False
        )


def _without(*keywords: str) -> Callable[[list[FileDataset]], None]:
    def remove(objects: list[FileDataset]) -> None:
        for one in objects:
            for keyword in keywords:
                del one[keyword]

    return remove


def _emptied(*keywords: str) -> Callable[[list[FileDataset]], None]:
    def empty(objects: list[FileDataset]) -> None:
        for one in objects:
            for keyword in keywords:
                setattr(one, keyword, None)

    return empty


def _shuffled(objects: list[FileDataset]) -> None:
    random.Random(1).shuffle(objects)


def _numbered_backwards(objects: list[FileDataset]) -> None:
    for number, one in enumerate(objects):
        one.InstanceNumber = len(objects) - number


def _odd_texts(objects: list[FileDataset]) -> None:
    with disable_value_validation():
        for one in objects:
            one.add_new("PatientBirthDate", "DA", "1970-01-01")
            one.add_new("StudyTime", "TM", "no time")


def _twelve_bits(objects: list[FileDataset]) -> None:
    """The four bits above those stored hold an overlay, as old scanners left it there."""
    for one, plane in zip(objects, np.moveaxis(VOXELS, 2, 0), strict=True):
        set_pixels(one, (plane.astype(np.uint16) | 0x3000).astype(np.uint16))
        one.BitsStored, one.HighBit = 12, 11


STORED: dict[str, Callable[[list[FileDataset]], None]] = {
    "as it is": lambda _: None,
    "shuffled": _shuffled,
    "numbered backwards": _numbered_backwards,
    "JPEG 2000": _compressed(JPEG2000Lossless),
    "JPEG-LS": _compressed(JPEGLSLossless),
    "RLE": _compressed(RLELossless),
    "implicit types": _as(ImplicitVRLittleEndian),
    "big endian": _big_endian,
    "deflated": _as(DeflatedExplicitVRLittleEndian),
    "twelve bits and an overlay": _twelve_bits,
    "no UID but the object's own": _emptied("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "no UID at all": _emptied("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    "no frame of reference": _without("FrameOfReferenceUID"),
    "nobody's": _without("PatientName", "PatientID", "StudyDate", "StudyTime", "SeriesNumber", "SliceThickness"),
    "thickness that is no distance": lambda objects: [setattr(one, "SliceThickness", 9) for one in objects] and None,
    "texts that are no dates": _odd_texts,
}


@pytest.mark.parametrize("how", STORED)
def test_a_series_is_the_scan_however_it_is_stored(how: str, tmp_path: Path) -> None:
    objects = made()
    STORED[how](objects)
    with disable_value_validation():
        saved(objects, tmp_path / "series")
    volume = opened(tmp_path / "series")
    assert_is_the_scan(volume)
    assert isinstance(volume.native, Source)


def test_jitter_of_real_scanners_is_no_gap(tmp_path: Path) -> None:
    objects = made()
    jitter = random.Random(2)
    for one in objects:
        one.ImagePositionPatient = [f"{float(x) + jitter.uniform(-0.01, 0.01):.4f}" for x in one.ImagePositionPatient]
        directions = [float(x) + jitter.uniform(-1e-5, 1e-5) for x in one.ImageOrientationPatient]
        one.ImageOrientationPatient = [f"{x:.7f}" for x in directions]
    assert_is_the_scan(opened(saved(objects, tmp_path)), atol=0.05)


def test_names_of_files_say_nothing(tmp_path: Path) -> None:
    assert_is_the_scan(opened(saved(made(), tmp_path, lambda number: f"{(number * 5) % 14}")))


def test_a_series_in_folders_of_folders_and_in_an_archive(tmp_path: Path) -> None:
    objects = made()
    saved(objects[:5], tmp_path / "study" / "a" / "x")
    saved(objects[5:], tmp_path / "study" / "b")
    (tmp_path / "study" / "README.txt").write_text("not a scan")
    assert_is_the_scan(opened(tmp_path / "study"))
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((tmp_path / "study").rglob("*")):
            packed.write(path, path.relative_to(tmp_path))
    assert_is_the_scan(opened(archive))
    assert_is_the_scan(opened(archive.read_bytes()))


def test_a_slope_a_slice_counts(tmp_path: Path) -> None:
    slopes = [0.5 + 0.25 * (k % 3) for k in range(SHAPE[2])]
    volume = opened(saved(slices(VOXELS, OBLIQUE, slope=slopes, intercept=-3.0), tmp_path))
    np.testing.assert_array_equal(volume.data[0], (VOXELS * np.array(slopes) - 3).astype(np.float32))


def test_one_slope_for_all_keeps_integers(tmp_path: Path) -> None:
    volume = opened(saved(slices(VOXELS, OBLIQUE, slope=1.0, intercept=-1024.0), tmp_path))
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data[0], VOXELS - 1024)


def test_each_plane_knows_its_object(tmp_path: Path) -> None:
    objects = made()
    source = opened(saved(objects[::-1], tmp_path)).native
    uids = [str(source.datasets[number].SOPInstanceUID) for number, _ in source.planes]
    assert uids == [str(one.SOPInstanceUID) for one in objects]


# Several series ------------------------------------------------------------------------------------------------


def localizer(study: FileDataset, number: int = 1) -> list[FileDataset]:
    across = affine_of((30, 30, 1), (4.0, 4.0, 9.0), codes="LSA")
    return slices(
        np.full((30, 30, 1), 7, np.int16),
        across,
        SeriesNumber=number,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        StudyInstanceUID=study.StudyInstanceUID,
        FrameOfReferenceUID=study.FrameOfReferenceUID,
    )


def test_localizers_and_derived_series_are_left_out_and_told(tmp_path: Path) -> None:
    objects = made(SeriesNumber=4)
    saved(objects, tmp_path / "4")
    saved(localizer(objects[0]), tmp_path / "1")
    derived = {"ImageType": ["DERIVED", "SECONDARY", "MIP"], "StudyInstanceUID": objects[0].StudyInstanceUID}
    saved(slices(np.repeat(VOXELS, 2, 2), OBLIQUE, SeriesNumber=9, **derived), tmp_path / "9")
    volume = opened(tmp_path)
    assert_is_the_scan(volume)
    (told,) = volume.warnings
    assert "series 4 (CT, 38 × 33 × 14) is taken" in told
    assert "of those that are neither localizers nor derived" in told
    assert "localizer)" in told
    assert "derived)" in told


def test_a_localizer_inside_the_series_is_left_out(tmp_path: Path) -> None:
    objects = made()
    inside = localizer(objects[0])
    for one in inside:
        one.SeriesInstanceUID, one.SeriesNumber = objects[0].SeriesInstanceUID, objects[0].SeriesNumber
    assert_is_the_scan(opened(saved([*inside, *objects], tmp_path)))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two series of one length: 3 (the scan) and 7 (its negative, as MR)."""
    one = made(SeriesNumber=3, SeriesDescription="CT venous")
    saved(one, tmp_path / "3")
    shared = {"StudyInstanceUID": one[0].StudyInstanceUID}
    other = slices(-VOXELS, OBLIQUE, "MR", SeriesNumber=7, SeriesDescription="T1", **shared)
    saved(other, tmp_path / "7")
    return tmp_path


def test_of_two_series_that_could_be_meant_none_is_guessed(study: Path) -> None:
    with pytest.raises(InputError, match=r"several that could be meant: series 3 .*series 7 .*--series 7"):
        opened(study)


@pytest.mark.parametrize(
    "choice", [{"series": ("3",)}, {"modality": "ct"}, {"description": "*VENOUS*"}], ids=lambda one: next(iter(one))
)
def test_a_series_is_chosen_by_what_is_said_of_it(choice: dict[str, Any], study: Path) -> None:
    assert_is_the_scan(opened(study, **choice))


def test_a_series_is_chosen_by_its_uid(study: Path) -> None:
    import pydicom

    uid = pydicom.dcmread(study / "3" / "0000.dcm").SeriesInstanceUID
    assert_is_the_scan(opened(study, series=(uid,)))


def test_what_is_not_there_is_not_chosen(study: Path) -> None:
    with pytest.raises(InputError, match=r"expected series 5, found none among series 3 .*, series 7"):
        opened(study, series=("5",))


def test_echoes_in_one_series_are_split(tmp_path: Path) -> None:
    one, other = made(EchoTime=10.0), slices(VOXELS // 2, OBLIQUE, EchoTime=80.0)
    for each in other:
        each.SeriesInstanceUID, each.FrameOfReferenceUID = one[0].SeriesInstanceUID, one[0].FrameOfReferenceUID
        each.StudyInstanceUID = one[0].StudyInstanceUID
    mixed = [each for pair in zip(one, other, strict=True) for each in pair]
    folder = saved(mixed, tmp_path)
    with pytest.raises(InputError, match=r"series 2:1 .*series 2:2 .*--series 2:2"):
        opened(folder)
    assert_is_the_scan(opened(folder, series=("2:1",)))
    np.testing.assert_array_equal(opened(folder, series=("2:2",)).data[0], VOXELS // 2)


def test_a_slice_that_was_copied_counts_once(tmp_path: Path) -> None:
    objects = made()
    volume = opened(saved([*objects, objects[3]], tmp_path))
    assert_is_the_scan(volume)
    assert volume.warnings == ("1 slices are there twice; one of each is used",)


def test_two_channels_are_two_series_of_one_study(study: Path) -> None:
    import pydicom

    for path in (study / "7").iterdir():
        one = pydicom.dcmread(path)
        one.FrameOfReferenceUID = pydicom.dcmread(study / "3" / path.name).FrameOfReferenceUID
        one.save_as(path)
    given = Given(dicom=SeriesChoice(series=("7", "3")))
    volume = open_scan(study, ["t1", "ct"], given=given)
    np.testing.assert_array_equal(volume.data, np.stack([-VOXELS, VOXELS]))


def test_channels_of_two_spaces_are_refused(study: Path) -> None:
    with pytest.raises(InputError, match="FrameOfReferenceUID"):
        open_scan([study / "3", study / "7"], ["ct", "t1"])


# What forms no plain grid --------------------------------------------------------------------------------------


def test_a_missing_slice_is_told_in_millimetres_and_filled_in_on_request(tmp_path: Path) -> None:
    objects = made()
    del objects[6:8]
    folder = saved(objects, tmp_path)
    with pytest.raises(
        InputError, match=r"distances of 2\.5 mm, found 1 wider gap, up to 7\.5 mm .*2 slices.*--gaps fill"
    ):
        opened(folder)
    volume = opened(folder, gaps="fill")
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)
    kept = [k for k in range(SHAPE[2]) if k not in (6, 7)]
    np.testing.assert_array_equal(volume.data[0][:, :, kept], VOXELS[:, :, kept])
    between = VOXELS[:, :, 5] * (2 / 3) + VOXELS[:, :, 8] / 3
    np.testing.assert_allclose(volume.data[0][:, :, 6], between, atol=0.5)
    assert volume.changes == ("2 missing slices filled in between their neighbours (scan)",)
    assert volume.native.planes[5:9] == ((5, 1), None, None, (6, 1))
    labels = np.arange(SHAPE[2])[None, None].repeat(SHAPE[0], 0).repeat(SHAPE[1], 1)
    assert volume.native.on_frames(labels)[0, 0].tolist() == kept


def test_distances_that_are_no_multiples_are_refused(tmp_path: Path) -> None:
    objects = made()
    for one in objects[7:]:
        one.ImagePositionPatient = _moved(one, OBLIQUE[:3, 2] * 0.6)
    with pytest.raises(InputError, match=r"even distances, found 2\.5 to 4 mm"):
        opened(saved(objects, tmp_path), gaps="fill")


def test_two_slices_at_one_place_are_named(tmp_path: Path) -> None:
    objects = made()
    twin = made()[4]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(twin, keyword, objects[0][keyword].value)
    twin.SOPInstanceUID = generate_uid()
    with pytest.raises(InputError, match=r"two at one: .*0004\.dcm and .*0014\.dcm"):
        opened(saved([*objects, twin], tmp_path))


def _moved(one: FileDataset, by: NDArray[np.float64]) -> list[str]:
    """A position moved by RAS millimetres."""
    lps = by * (-1, -1, 1)
    return [f"{float(x) + step:.6f}" for x, step in zip(one.ImagePositionPatient, lps, strict=True)]


def tilted(degrees: float) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Voxels and affine of the anatomy as a tilted gantry takes it: each slice further along the rows."""
    shape = (24, 30, 15)
    affine = affine_of(shape, (1.5, 1.5, 2.0), codes="LPS")
    affine[:3, 2] += affine[:3, 1] / 1.5 * 2.0 * np.tan(np.radians(degrees))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return np.rint(sampled(shape, affine)).astype(np.int16), affine


def test_a_tilted_gantry_is_named_and_straightened_on_request(tmp_path: Path) -> None:
    voxels, affine = tilted(15.0)
    folder = saved(slices(voxels, affine), tmp_path)
    with pytest.raises(InputError, match=r"tilted by 15\.00 degrees.*--tilt straighten"):
        opened(folder)
    volume = opened(folder, tilt="straighten")
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-6)
    truth = sampled(volume.shape, volume.affine)
    inside = truth > 100
    error = np.abs(volume.data[0] - truth)[inside]
    sheared = np.abs(sampled(volume.shape, affine) - truth)[inside]
    assert error.mean() < 0.15 * sheared.mean()
    assert volume.changes == ("a gantry tilted by 15.00 degrees straightened (scan)",)


def test_labels_of_a_straightened_scan_return_to_the_frames(tmp_path: Path) -> None:
    voxels, affine = tilted(20.0)
    volume = opened(saved(slices(voxels, affine), tmp_path), tilt="straighten")
    labels = volume.native.on_frames((volume.data[0] > 300).astype(np.uint8))
    wanted = voxels > 300
    (before,) = {volume.native.shifts[7].round().astype(int)[1]}  # the middle slice, without its lean
    kept = (volume.data[0] > 300)[:, before : before + wanted.shape[1]]
    assert (labels.astype(bool) != wanted).sum() < 0.4 * (kept != wanted).sum()


def test_a_moved_table_is_refused(tmp_path: Path) -> None:
    objects = made()
    for one in objects[9:]:
        one.ImagePositionPatient = _moved(one, OBLIQUE[:3, 0] * 2)
    with pytest.raises(InputError, match="straight line"):
        opened(saved(objects, tmp_path))


# What cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_missing_place_names_tag_and_file(keyword: str, tmp_path: Path) -> None:
    objects = made()
    del objects[3][keyword]
    with pytest.raises(InputError, match=rf"0003\.dcm: expected {keyword} \(00[0-9A-F]{{2}},"):
        opened(saved(objects, tmp_path))


def test_one_slice_of_a_series_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = saved(made(), tmp_path)
    with pytest.raises(InputError, match="found 1 of them, with 13 more beside it; give their folder"):
        opened(folder / "0003.dcm")


def test_a_truncated_object_is_named(tmp_path: Path) -> None:
    folder = saved(made(), tmp_path)
    last = folder / "0013.dcm"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"0013\.dcm"):
        opened(folder)


def test_a_damaged_object_of_another_series_is_told_and_left(tmp_path: Path) -> None:
    objects = made()
    other = localizer(objects[0])
    del other[0]["ImageOrientationPatient"]
    saved(other, tmp_path / "1")
    volume = opened(saved(objects, tmp_path / "2").parent)
    assert_is_the_scan(volume)
    assert volume.warnings == ("beside the scan: 1 file with objects that cannot be used",)


def test_bits_that_stand_higher_are_refused(tmp_path: Path) -> None:
    objects = made(BitsStored=12)
    for one in objects:
        one.BitsStored, one.HighBit = 12, 15
    with pytest.raises(InputError, match=r"HighBit \(0028,0102\) 11\), found 15"):
        opened(saved(objects, tmp_path))


def test_colours_and_tables_are_refused(tmp_path: Path) -> None:
    objects = made(PhotometricInterpretation="RGB", SamplesPerPixel=3)
    for one in objects:
        one.PhotometricInterpretation, one.SamplesPerPixel = "RGB", 3
    with pytest.raises(InputError, match="colours"):
        opened(saved(objects, tmp_path))


def test_a_choice_is_for_dicom_alone(tmp_path: Path) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(VOXELS, OBLIQUE), tmp_path / "scan.nii")
    with pytest.raises(InputError, match="series as asked for: is for DICOM"):
        opened(tmp_path / "scan.nii", series=("3",))


def test_an_archive_that_claims_too_much_or_is_encrypted_is_refused(tmp_path: Path) -> None:
    saved(made(), tmp_path / "series")
    archive = tmp_path / "series.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((tmp_path / "series").iterdir()):
            packed.write(path, path.name)
    content = bytearray(archive.read_bytes())
    archive.write_bytes(content[:-30])
    with pytest.raises(InputError, match="zip"):
        opened(archive)


# Nobody is named -----------------------------------------------------------------------------------------------


def test_no_text_of_an_object_is_told(tmp_path: Path, caplog: Any, recwarn: Any) -> None:
    canary = "Kanarienvogel"
    objects = made(
        PatientName=canary, PatientID=canary, SeriesDescription=canary, InstitutionName=canary, ProtocolName=canary
    )
    with disable_value_validation():
        for one in objects:
            one.add_new("PatientBirthDate", "DA", canary)
            one.add_new("StudyDate", "DA", canary)
        saved(objects, tmp_path / "a")
    saved(localizer(objects[0]), tmp_path / "b")
    volume = opened(tmp_path)
    said = [*volume.warnings, *volume.changes, caplog.text, *(str(one.message) for one in recwarn)]
    with pytest.raises(InputError) as refused:
        opened(tmp_path, series=("99",))
    del objects[5]
    with disable_value_validation():
        saved(objects, tmp_path / "c")
    with pytest.raises(InputError) as gap:
        opened(tmp_path / "c")
    assert not [text for text in (*said, str(refused.value), str(gap.value)) if canary in text]
