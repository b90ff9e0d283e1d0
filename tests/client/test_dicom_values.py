"""Values and places are those that an object states, wherever it states them; what is in doubt is refused."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.support.dicom_series import saved, set_pixels, slices
from tests.support.phantoms import affine_of
from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.objects import quiet
from voxtile.io.dicom.objects.headers import items_of
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (34, 33, 4)
AFFINE = affine_of(SHAPE, (1.0, 1.5, 2.0), "LPS", (8.0, 0.0, -5.0))
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
MR = ["ORIGINAL", "PRIMARY", "M", "NONE"]


def opened(place: Path, **choice: Any) -> Volume:
    return open_scan(place, ["scan"], given=Given(dicom=SeriesChoice(**choice)))


def assert_values(place: Path, values: NDArray[Any]) -> None:
    volume = opened(place)
    np.testing.assert_array_equal(volume.data[0], values)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def enhanced(**scale: Any) -> Any:
    """One object of all slices; it is made of the last first."""
    objects = slices(VOXELS, AFFINE, "MR", ImageType=MR, **scale)[::-1]
    with quiet.quietly():
        return highdicom.legacy.LegacyConvertedEnhancedMRImage(objects, highdicom.UID(), 9, highdicom.UID(), 1)


def groups(one: Any) -> list[Dataset]:
    return [*one.PerFrameFunctionalGroupsSequence, *one.SharedFunctionalGroupsSequence]


def written(one: Any, folder: Path) -> Path:
    with quiet.quietly():
        one.save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"


# Where an enhanced object states a tag ---------------------------------------------------------------------------

MACROS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
}


def to_root(one: Any, macro: str, whole: bool) -> None:
    """Moves a functional group that all frames share into the root: as a sequence, or its tags alone."""
    found = [group[macro].value[0] for group in groups(one) if macro in group]
    assert found
    for group in groups(one):
        group.pop(macro, None)
    if whole:
        setattr(one, macro, [found[0]])
        return
    for keyword in MACROS[macro]:
        setattr(one, keyword, found[0][keyword].value)


def to_frame(one: Any, macro: str, _: bool) -> None:
    """Puts the tags of a functional group beside it, into the item of each frame."""
    shared = next((group[macro].value[0] for group in groups(one) if macro in group), None)
    for group in one.PerFrameFunctionalGroupsSequence:
        item = group.pop(macro).value[0] if macro in group else shared
        for keyword in MACROS[macro]:
            setattr(group, keyword, item[keyword].value)
    for group in one.SharedFunctionalGroupsSequence:
        group.pop(macro, None)


@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize(("move", "whole"), [(to_root, False), (to_root, True), (to_frame, False)])
def test_a_tag_counts_wherever_an_object_states_it(macro: str, move: Any, whole: bool, tmp_path: Path) -> None:
    one = enhanced(slope=2.0, intercept=-1000.0)
    move(one, macro, whole)
    assert_values(written(one, tmp_path), VOXELS * 2.0 - 1000)


def test_a_slope_a_frame_counts(tmp_path: Path) -> None:
    slopes = [1.0, 2.0, 0.5, 4.0]
    assert_values(written(enhanced(slope=slopes, intercept=3.0), tmp_path), (VOXELS * slopes + 3).astype(np.float32))


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_places_that_disagree_are_refused(tag: str, tmp_path: Path) -> None:
    one = enhanced(slope=2.0, intercept=-1000.0)
    one.RescaleSlope, one.RescaleIntercept = 2.0, -1000.0
    assert_values(written(one, tmp_path), VOXELS * 2.0 - 1000)
    for place in (one, one.PerFrameFunctionalGroupsSequence[0], *one.SharedFunctionalGroupsSequence):
        place.RescaleSlope, place.RescaleIntercept = 2.0, -1000.0
        setattr(place, tag, 7.0)
        with pytest.raises(InputError, match=r"frame 1: expected one RescaleSlope \(0028,1053\).* found 2 pairs"):
            opened(written(one, tmp_path))
        setattr(place, tag, {"RescaleSlope": 2.0, "RescaleIntercept": -1000.0}[tag])


def test_one_frame_in_shared_groups_alone_is_read_by_them(tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE)
    for one in objects:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept = one.RescaleSlope * 3, -5.0
        group = Dataset()
        group.PixelValueTransformationSequence = [item]
        one.SharedFunctionalGroupsSequence = [group]
        del one.RescaleSlope, one.RescaleIntercept
    assert_values(saved(objects, tmp_path), VOXELS * 3.0 - 5)


@pytest.mark.parametrize("place", ["frame", "root"])
def test_a_table_in_place_of_a_slope_is_refused(place: str, tmp_path: Path) -> None:
    one = enhanced()
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [2, 0, 16])
    table.add_new("LUTData", "US", [5, 9])
    macro = "PixelValueTransformationSequence"
    item = one if place == "root" else next(group[macro].value[0] for group in groups(one) if macro in group)
    item.ModalityLUTSequence = [table]
    with pytest.raises(InputError, match=r"a table of values \(ModalityLUTSequence \(0028,3000\)\)"):
        opened(written(one, tmp_path))


def test_real_world_values_are_not_applied(tmp_path: Path) -> None:
    one = enhanced(slope=2.0)
    mapping = Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 100.0, 7.0
    for group in one.PerFrameFunctionalGroupsSequence:
        group.RealWorldValueMappingSequence = [mapping]
    assert_values(written(one, tmp_path), VOXELS * 2.0)


# Numbers that are none -------------------------------------------------------------------------------------------


SCALES = [
    ("RescaleSlope", b"1,5 "),
    ("RescaleIntercept", b"-1024,0 "),
    ("RescaleSlope", b"nan "),
    ("RescaleSlope", b"a "),
]


@pytest.mark.parametrize(("keyword", "value"), SCALES)
def test_a_scale_that_is_no_number_is_not_taken_for_missing(keyword: str, value: bytes, tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE, slope=1.25, intercept=-1023.5)
    folder = saved(objects, tmp_path)
    stated = {"RescaleSlope": b"DS\4\x001.25", "RescaleIntercept": b"DS\x08\0-1023.5 "}[keyword]
    path = folder / "0002.dcm"
    content = path.read_bytes()
    assert content.count(stated) == 1
    path.write_bytes(content.replace(stated, b"DS" + len(value).to_bytes(2, "little") + value))
    with pytest.raises(InputError, match=rf"0002\.dcm: expected a finite number as {keyword} \(0028,105[23]\)"):
        opened(folder)


def test_a_slope_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0001\.dcm: expected RescaleSlope \(0028,1053\) other than 0"):
        opened(saved(slices(VOXELS, AFFINE, slope=[1.0, 0.0, 1.0, 1.0]), tmp_path))


@pytest.mark.parametrize("lost", ["RescaleSlope", "RescaleIntercept"])
def test_a_slope_without_an_intercept_is_no_scale(lost: str, tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE, slope=2.0, intercept=-1000.0)
    for one in objects:
        del one[lost]
    with pytest.raises(InputError, match=rf"0000\.dcm: expected RescaleSlope .* together, found no {lost}"):
        opened(saved(objects, tmp_path))


def test_a_scale_that_one_slice_lost_is_missed(tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE, slope=2.0)
    del objects[3].RescaleSlope, objects[3].RescaleIntercept
    with pytest.raises(InputError, match=r"0003\.dcm: expected RescaleSlope .* as in other slices"):
        opened(saved(objects, tmp_path / "some"))
    for one in objects[:3]:
        del one.RescaleSlope, one.RescaleIntercept
    assert_values(saved(objects, tmp_path / "none"), VOXELS)
    (told,) = opened(tmp_path / "none").warnings
    assert "no RescaleSlope (0028,1053) is stated" in told


@pytest.mark.parametrize("length", [0.9, 1.1])
def test_directions_have_the_length_of_one(length: float, tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE)
    for one in objects:
        one.ImageOrientationPatient = [
            float(x) * length if k < 3 else x for k, x in enumerate(one.ImageOrientationPatient)
        ]
    with pytest.raises(InputError, match=rf"each of length 1, found lengths {length:g} and 1"):
        opened(saved(objects, tmp_path))


# Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", *MACROS])
def test_a_damaged_sequence_is_no_missing_one(keyword: str, tmp_path: Path) -> None:
    one = enhanced(slope=2.0, intercept=-1000.0)
    path = written(one, tmp_path)
    content = path.read_bytes()
    tag = Tag(keyword)
    place = content.index(tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little") + b"SQ")
    refused = 0
    for offset in range(8, 28):  # lengths of sequence, item and first value, and the tags of both
        for bits in (0x01, 0x10):
            changed = bytearray(content)
            changed[place + offset] ^= bits
            path.write_bytes(changed)
            try:
                volume = opened(path)
            except InputError:
                refused += 1
            else:
                np.testing.assert_array_equal(volume.data[0], VOXELS * 2.0 - 1000, err_msg=f"{offset} {bits}")
                np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert refused > 10


def _one_group() -> bytes:
    """Two sequences of an item each, without types: an item is as long as it says."""
    measures, scale, group = Dataset(), Dataset(), Dataset()
    measures.SliceThickness, measures.PixelSpacing = "2 ", ["1 ", "1"]
    scale.RescaleIntercept, scale.RescaleSlope = "-4", "2 "
    group.PixelMeasuresSequence, group.PixelValueTransformationSequence = [measures], [scale]
    file = io.BytesIO()
    group.save_as(file, implicit_vr=True, little_endian=True)
    return file.getvalue()


def _read(content: bytes) -> list[Dataset]:
    return items_of(dcmread(io.BytesIO(content), force=True), "PixelMeasuresSequence", "one.dcm")


@pytest.mark.parametrize(
    ("place", "by"),
    [(4, 4096), (4, len(_one_group()) - 38), (12, -12), (12, 4), (20, 4)],
    ids=["too long", "with the next sequence", "without its last value", "beyond its end", "a value beyond its end"],
)
def test_a_sequence_is_its_items_and_nothing_else(place: int, by: int) -> None:
    content = _one_group()
    assert [list(map(str, item.PixelSpacing)) for item in _read(content)] == [["1", "1"]]
    length = int.from_bytes(content[place : place + 4], "little") + by
    with pytest.raises(InputError, match=r"one\.dcm: expected a .*DICOM object"):
        _read(content[:place] + length.to_bytes(4, "little") + content[place + 4 :])


@pytest.mark.parametrize("keyword", ["Rows", "SeriesInstanceUID", "SOPClassUID"])
def test_a_header_that_swallowed_what_follows_is_damaged(keyword: str, tmp_path: Path) -> None:
    folder = saved(slices(VOXELS, AFFINE), tmp_path)
    path = folder / "0003.dcm"
    content = bytearray(path.read_bytes())
    tag = slices(VOXELS, AFFINE)[0][keyword].tag
    place = content.index(
        tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little"), 400 if tag.group > 8 else 132
    )
    content[place + 6 : place + 8] = b"\xf0\xff"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"0003\.dcm"):
        opened(folder)


@pytest.mark.parametrize("kind", ["plain", "enhanced"])
@pytest.mark.parametrize("count", [1, 2, 300, 40000])
def test_bytes_between_pixels_are_noticed(count: int, kind: str, tmp_path: Path) -> None:
    plain = kind == "plain"
    path = saved(slices(VOXELS, AFFINE), tmp_path) / "0001.dcm" if plain else written(enhanced(), tmp_path)
    content = path.read_bytes()
    place = content.index(b"\xe0\x7f\x10\0") + 500
    path.write_bytes(content[:place] + bytes(count) + content[place:])
    with pytest.raises(InputError, match=r"expected .* bytes of pixels and nothing behind them"):
        opened(path.parent if plain else path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_bytes_lost_from_compressed_pixels_are_noticed(syntax: Any, tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE)
    for one in objects:
        one.compress(syntax, generate_instance_uid=False)
    folder = saved(objects, tmp_path)
    paths = sorted(folder.iterdir())
    content = paths[1].read_bytes()
    paths[2].write_bytes(paths[2].read_bytes().removesuffix(b"\xfe\xff\xdd\xe0\0\0\0\0"))
    assert_values(folder, VOXELS)
    place = content.index(b"\xe0\x7f\x10\0") + 80
    for cut in (1, 20):
        paths[1].write_bytes(content[:place] + content[place + cut :])
        with pytest.raises(InputError, match=r"0001\.dcm: expected compressed pixels in pieces"):
            opened(folder)


def test_what_may_stand_behind_pixels_is_no_damage(tmp_path: Path) -> None:
    folder = saved(slices(VOXELS, AFFINE), tmp_path)
    paths = sorted(folder.iterdir())
    behind = (
        b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0\0\0\0\0",  # DataSetTrailingPadding
        b"\xe1\x7f\x10\0LO\4\0mine",
        bytes(-paths[2].stat().st_size % 512),  # a block of a tape
        bytes(2 * SHAPE[0] * SHAPE[1]),  # a frame that no header counts
    )
    for path, more in zip(paths, behind, strict=True):
        path.write_bytes(path.read_bytes() + more)
    assert_values(folder, VOXELS)


# Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [0, 1])
def test_fractions_are_not_read_as_integers(sign: int, tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE)
    for one, plane in zip(objects, np.moveaxis(VOXELS, 2, 0), strict=True):
        del one.PixelData, one.PixelRepresentation
        one.BitsAllocated = one.BitsStored = 32
        one.HighBit = 31
        one.FloatPixelData = np.ascontiguousarray(plane.T / np.float32(8000), np.float32).tobytes()
    assert_values(saved(objects, tmp_path / "without"), VOXELS / np.float32(8000))
    for one in objects:
        one.PixelRepresentation = sign
    with pytest.raises(InputError, match=r"0000\.dcm: expected u?int32 pixels, by BitsAllocated .* found float32"):
        opened(saved(objects, tmp_path / "with"))


def test_signs_of_jpeg_2000_are_those_of_the_header(tmp_path: Path) -> None:
    """Unsigned streams of signed numbers are common, and right bit by bit; the contrary is not."""
    for sign, dtype in ((1, np.int16), (0, np.uint16)):
        objects = slices((VOXELS - (40 if sign else 0)).astype(dtype), AFFINE)
        for one in objects:
            one.compress(JPEG2000Lossless, generate_instance_uid=False)
        assert_values(saved(objects, tmp_path / f"{sign}"), VOXELS - (40 if sign else 0))
        for one in objects:
            one.PixelRepresentation = 1 - sign
        folder = saved(objects, tmp_path / f"{sign} turned")
        if sign:
            with pytest.raises(InputError, match="found JPEG 2000 of numbers with one"):
                opened(folder)
        else:
            assert_values(folder, VOXELS)


def test_slices_agree_in_what_their_bits_mean(tmp_path: Path) -> None:
    objects = slices(VOXELS - 3000, AFFINE)
    set_pixels(objects[2], (VOXELS[:, :, 2] - 3000).astype(np.uint16))
    with pytest.raises(InputError, match=r"0002\.dcm: expected PixelRepresentation \(0028,0103\) 1 as in .*000[013]"):
        opened(saved(objects, tmp_path / "negative"))
    harmless = slices(VOXELS, AFFINE)
    set_pixels(harmless[2], VOXELS[:, :, 2].astype(np.uint16))
    assert_values(saved(harmless, tmp_path / "positive"), VOXELS)
    set_pixels(harmless[2], (VOXELS[:, :, 2].astype(np.int32) + 40000).astype(np.uint16))
    harmless[2].RescaleIntercept = -40000
    assert_values(saved(harmless, tmp_path / "scaled"), VOXELS)
    objects = slices(VOXELS, AFFINE)
    objects[1].BitsStored, objects[1].HighBit = 8, 7
    with pytest.raises(InputError, match=r"expected as many bits .*BitsStored \(0028,0101\)"):
        opened(saved(objects, tmp_path / "bits"))


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_frames_are_read_in_any_order(syntax: Any, tmp_path: Path) -> None:
    one = enhanced()
    frames = one.PerFrameFunctionalGroupsSequence
    stored = np.frombuffer(one.PixelData, np.int16).reshape(len(frames), -1)
    order = [2, 0, 3, 1]
    one.PerFrameFunctionalGroupsSequence = [frames[k] for k in order]
    one.PixelData = stored[order].tobytes()
    if syntax:
        one.compress(syntax, generate_instance_uid=False)
    assert_values(written(one, tmp_path), VOXELS)


def test_objects_without_preamble_and_meta_are_read(tmp_path: Path) -> None:
    for implicit in (False, True):
        folder = tmp_path / str(implicit)
        folder.mkdir()
        for number, one in enumerate(slices(VOXELS, AFFINE)):
            Dataset(one).save_as(folder / f"{number}.dcm", implicit_vr=implicit, little_endian=True)
        assert_values(folder, VOXELS)


def _by_type(one: FileDataset) -> None:
    one.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def _by_tag(one: FileDataset) -> None:
    block = one.private_block(0x19, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 36)


def _by_header(one: FileDataset) -> None:
    """The scanner's own header with one tag: NumberOfImagesInMosaic, 36."""
    name, item = b"NumberOfImagesInMosaic".ljust(64, b"\0"), b"36".ljust(4, b"\0")
    numbers = np.array([1], "<i4").tobytes() + b"US\0\0" + np.array([6, 1, 77], "<i4").tobytes()
    length = np.array([4, 4, 77, 4], "<i4").tobytes()
    header = b"SV10\4\3\2\1" + np.array([1, 77], "<u4").tobytes() + name + numbers + length + item
    one.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)


@pytest.mark.parametrize("mark", [_by_type, _by_tag, _by_header])
def test_a_mosaic_is_refused_with_what_to_do(mark: Callable[[FileDataset], None], tmp_path: Path) -> None:
    objects = slices(VOXELS, AFFINE, "MR")
    for one in objects:
        mark(one)
    with pytest.raises(InputError, match=r"0000\.dcm: .*Siemens mosaic of many .* dcm2niix"):
        opened(saved(objects, tmp_path))


# What is said of a scan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "number"), [("MARY", 19700101), ("ANNA", 1234567), ("X1", -1234567)])
def test_words_and_numbers_that_may_name_somebody_are_not_told(word: str, number: int, tmp_path: Path) -> None:
    tags = {"Modality": word, "SeriesNumber": number}
    saved(slices(VOXELS, AFFINE, **tags), tmp_path / "a")
    saved(slices(VOXELS + 1, AFFINE, Modality="CT", SeriesNumber=999_999, PatientID="P1"), tmp_path / "b")
    with pytest.raises(InputError) as refused:
        opened(tmp_path)
    said = str(refused.value).replace(str(tmp_path), "")
    assert "long" in said or "several" in said
    assert word not in said
    assert str(number) not in said
    for asked in ({"series": (str(number),)}, {"series": ("long",)}, {"modality": word.lower()}):
        np.testing.assert_array_equal(opened(tmp_path, **asked).data[0], VOXELS)
    np.testing.assert_array_equal(opened(tmp_path, series=("999999",)).data[0], VOXELS + 1)


def test_silence_ends_also_where_it_could_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("pydicom")
    level, filters = logger.level, list(warnings.filters)
    with monkeypatch.context() as patch:
        patch.setattr(quiet.logging, "getLogger", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError), quiet.quietly():
            raise AssertionError("nothing is silent")
    assert warnings.filters == filters
    with quiet.quietly():
        with quiet.quietly():
            assert logger.level > logging.CRITICAL
        assert logger.level > logging.CRITICAL
    assert (logger.level, warnings.filters) == (level, filters)
