"""A DICOM SEG says what the mask says: the same voxels, on the same frames and side, whatever headers lack."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.spatial import cKDTree

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from voxtile.card import Code
from voxtile.errors import InputError, OutputError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.frames import frames_of
from voxtile.io.dicom.source import Source
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.seg import advice_of, seg_of
from voxtile.outputs.dicom.write import write_object

KINDS = ("binary", "labelmap")
ORIENTATIONS = ("LPS", "LPI", "RAI", "LSA", "PSL", "ASR")
"""Axial upwards and downwards, turned, coronal, sagittal."""


def saved(seg: Any, folder: Path) -> Path:
    write_object(seg, folder / "seg.dcm")
    return folder / "seg.dcm"


def by_frames(path: Path, finding: Finding) -> NDArray[Any]:
    """[i, j, frame] the numbers that highdicom reads for each frame of the scan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that break a rule
        seg = hd.seg.segread(path)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    references = finding.frames.references
    if references[0].frame is None:
        read = seg.get_pixels_by_source_instance([one.sop_instance for one in references], **options)
    else:
        frames = [one.frame for one in references]
        read = seg.get_pixels_by_source_frame(references[0].sop_instance, frames, **options)
    return read.transpose(2, 1, 0)


def by_place(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """What dcmqi reads: labels [i, j, k] and their affine to RAS millimetres."""
    folder = path.parent / "dcmqi"
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).parent / "segimage2itkimage"
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "--mergeSegments", "-t", "nii"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.nii.gz")
    image = nib.load(found)
    return np.asarray(image.dataobj).astype(int), image.affine


def places(labels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """[voxel, 4] the label of every labelled voxel, a metre apart, and its place in millimetres."""
    voxels = np.argwhere(labels)
    return np.column_stack([1000.0 * labels[labels > 0], voxels @ affine[:3, :3].T + affine[:3, 3]])


def lie_alike(one: tuple[NDArray[Any], NDArray[np.float64]], other: tuple[NDArray[Any], NDArray[np.float64]]) -> bool:
    """Whether two masks have the same labels at the same places, up to a hundredth of a millimetre."""
    first, second = places(*one), places(*other)
    if len(first) != len(second):
        return False
    apart, nearest = cKDTree(first).query(second)
    return bool(apart.max() < 0.01 and len(set(nearest.tolist())) == len(first))


@pytest.mark.parametrize(("codes", "kind"), [*((codes, "binary") for codes in ORIENTATIONS), ("LPS", "labelmap")])
def test_highdicom_and_dcmqi_read_the_mask_back_where_it_lies(codes: str, kind: Any, tmp_path: Path) -> None:
    """By the frames it names (highdicom), and by its own geometry alone (dcmqi)."""
    voxels, affine = made.scan(codes=codes)
    finding = made.finding(series.slices(voxels, affine), voxels, affine)
    path = saved(seg_of(finding, kind), tmp_path)
    labels = made.labels_of(voxels)
    assert np.array_equal(by_frames(path, finding), labels)
    assert lie_alike(by_place(path), (labels, affine))


def test_an_oblique_scan_of_many_numbers_lies_where_it_lay(tmp_path: Path) -> None:
    voxels, affine = made.scan(angles=(10.0, -7.0, 23.0), spacing=(0.7812345, 0.9, 3.3))
    finding = made.finding(series.slices(voxels, affine), voxels, affine)
    path = saved(seg_of(finding, "labelmap"), tmp_path)
    assert lie_alike(by_place(path), (made.labels_of(voxels), affine))


def test_sides_are_the_patients(tmp_path: Path) -> None:
    """The lesion of the phantom lies on the right (x above 0 in RAS): a label there is on the right in the file too."""
    voxels, affine = made.scan()
    right = np.asfortranarray(np.zeros(voxels.shape, np.uint8))
    world = affine[0, 0] * np.arange(voxels.shape[0]) + affine[0, 3]
    right[world > 1] = 1
    finding = made.finding(series.slices(voxels, affine), voxels, affine, right, made.card_for(["kidney_right"]))
    seg = seg_of(finding)
    item = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (item.CodeValue, item.CodeMeaning) == ("64033007", "Kidney")
    (side,) = item.SegmentedPropertyTypeModifierCodeSequence
    assert (side.CodeValue, side.CodeMeaning) == ("24028007", "Right")
    geometry = hd.seg.Segmentation.from_dataset(seg).get_volume_geometry()
    columns = np.flatnonzero(by_frames(saved(seg, tmp_path), finding).any(axis=(1, 2)))
    points = geometry.map_indices_to_reference(np.array([[0, 0, column] for column in columns]))
    assert (points[:, 0] < 0).all()  # LPS: the patient's right is below 0


def jittered(datasets: Sequence[Any]) -> None:
    """Positions and orientations differ in the sixth digit, as some scanners write them."""
    noise = np.random.default_rng(1)
    for one in datasets:
        one.ImageOrientationPatient = [f"{float(v) + noise.normal() * 1e-6:.9f}" for v in one.ImageOrientationPatient]
        one.ImagePositionPatient = [f"{float(v) + noise.normal() * 1e-3:.6f}" for v in one.ImagePositionPatient]


def without(*keywords: str) -> Callable[[Sequence[Any]], None]:
    """Tags are missing altogether."""

    def remove(datasets: Sequence[Any]) -> None:
        for one in datasets:
            for keyword in keywords:
                if keyword in one:
                    delattr(one, keyword)

    return remove


def with_values(**values: Any) -> Callable[[Sequence[Any]], None]:
    """Tags have other values."""

    def change(datasets: Sequence[Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for one in datasets:
                for keyword, value in values.items():
                    setattr(one, keyword, value)

    return change


PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SliceThickness", "Modality",
)  # fmt: skip

HEADERS: dict[str, tuple[Callable[[Sequence[Any]], None], str | None]] = {
    "jitter": (jittered, None),
    "nothing of patient and study": (without(*PATIENT_AND_STUDY), None),
    "no frame of reference": (without("FrameOfReferenceUID"), None),
    "no study": (without("StudyInstanceUID", "SeriesInstanceUID"), "the scan has no StudyInstanceUID"),
    "no object UIDs": (without("SOPInstanceUID", "SOPClassUID"), None),  # file_meta says them
    "empty UIDs": (with_values(SOPInstanceUID="", StudyInstanceUID="", FrameOfReferenceUID=""), "StudyInstanceUID"),
    "wrong dates": (with_values(PatientBirthDate="1970-01-01", StudyDate="yesterday"), "PatientBirthDate"),
    "a wrong time": (with_values(StudyTime="quarter past"), "StudyTime"),
    "an unknown sex": (with_values(PatientSex="X"), "PatientSex"),
    "two sexes": (with_values(PatientSex="M\\F"), "PatientSex"),
    "a wrong UID": (with_values(StudyInstanceUID="1.02.003.4"), None),
    "a private class": (with_values(SOPClassUID="1.3.12.2.1107.5.9.1"), None),
    "an unknown modality": (with_values(Modality="ZZ"), None),
    "Japanese": (with_values(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"), None),
    "a name of many words": (with_values(PatientName="Egg^" + "x" * 90), None),
    "thickness 0": (with_values(SliceThickness=0), None),
    "thickness no number": (with_values(SliceThickness=""), None),
}


@pytest.mark.parametrize("case", HEADERS)
def test_odd_headers_change_nothing_of_the_mask(case: str, tmp_path: Path) -> None:
    change, told = HEADERS[case]
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    change(datasets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finding = made.finding(datasets, voxels, affine, card=made.card_for(["liver", "spleen", "heart", "colon"]))
        path = saved(seg_of(finding), tmp_path)
    assert np.array_equal(by_frames(path, finding), made.labels_of(voxels))
    assert bool(finding.warnings) == (told is not None)
    assert all("1970" not in line and "quarter" not in line for line in finding.warnings)
    assert told is None or any(told in line for line in finding.warnings)


def test_a_patient_stays_who_it_is(tmp_path: Path) -> None:
    """Also in another script, and with a study UID that breaks a rule: the archive has filed the scan under these."""
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    with_values(
        SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name, PatientID="7\\A", StudyInstanceUID="1.02.3"
    )(datasets)
    seg = pydicom.dcmread(saved(seg_of(made.finding(datasets, voxels, affine)), tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert str(seg.PatientName) == name
        assert list(seg.PatientID) == ["7", "A"]
        assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("1.02.3", datasets[0].FrameOfReferenceUID)


def test_a_header_without_a_place_is_refused_without_its_values() -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    without("ImagePositionPatient")(datasets)
    with pytest.raises(InputError, match=r"expected ImagePositionPatient \(0020,0032\), 3 numbers") as refused:
        made.finding(datasets, voxels, affine)
    assert "Egg" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_one_object_are_named_by_their_number(kind: Any, tmp_path: Path) -> None:
    """The planes of the scan are every second frame from the end: a part of the object, in another order."""
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    whole = made.enhanced(datasets)
    planes = made.planes_of(whole, datasets)
    chosen = list(range(8, -1, -2))
    source = Source((whole,), tuple(planes[k] for k in chosen))
    step = np.eye(4)
    step[2, 2], step[2, 3] = -2, 8
    part = np.asfortranarray(voxels[:, :, chosen])
    finding = made.finding(source, part, affine @ step)
    path = saved(seg_of(finding, kind), tmp_path)
    assert finding.frames.references[0].frame == planes[8][1]
    assert np.array_equal(by_frames(path, finding), made.labels_of(part))
    assert lie_alike(by_place(path), (made.labels_of(part), affine @ step))


GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def elsewhere(one: Any) -> None:
    """States another place in the root of an object, where it does not count."""
    one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing = [9, 9, 9], [0, 1, 0, 1, 0, 0], [7, 7]


def beside_the_groups(whole: Any) -> None:
    """As some writers do: the tags stand in the items of the frames, not in their groups."""
    shared = whole.SharedFunctionalGroupsSequence[0]
    for item in whole.PerFrameFunctionalGroupsSequence:
        for group, keyword in zip(GROUPS, PLACE, strict=True):
            held = item if group in item else shared
            setattr(item, keyword, held[group][0][keyword].value)
        for group in GROUPS:
            if group in item:
                del item[group]
    elsewhere(whole)


@pytest.mark.parametrize("change", [lambda whole: None, elsewhere, beside_the_groups])
def test_a_mask_lies_where_its_scan_was_read_to_lie(change: Any) -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    whole = made.enhanced(datasets)
    planes = made.planes_of(whole, datasets)
    change(whole)
    frames = made.finding(Source((whole,), planes), voxels, affine).frames
    read = list(frames_of(whole, File("scan")))
    assert np.array_equal(frames.positions, [read[number - 1].position for _, number in planes])
    lps = np.diag([-1, -1, 1, 1]) @ affine
    assert np.allclose(frames.positions, (lps @ [[0] * 9, [0] * 9, range(9), [1] * 9])[:3].T)
    assert np.allclose(frames.along * np.array(frames.spacing)[:, None], lps[:3, :2].T)


def test_an_object_of_one_frame_lies_where_its_groups_say() -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    for one in datasets:
        groups = Dataset()
        for group, keyword in zip(GROUPS, PLACE, strict=True):
            item = Dataset()
            setattr(item, keyword, list(one[keyword].value))
            setattr(groups, group, [item])
        one.SharedFunctionalGroupsSequence = [groups]
        elsewhere(one)
    frames = made.finding(datasets, voxels, affine).frames
    lps = np.diag([-1, -1, 1, 1]) @ affine
    assert np.allclose(frames.positions, (lps @ [[0] * 9, [0] * 9, range(9), [1] * 9])[:3].T)


def test_two_frames_in_one_place_are_told_apart(tmp_path: Path) -> None:
    """Of a scan of two echoes only the frames that were read are named."""
    voxels, affine = made.scan()
    whole = made.enhanced(series.slices(voxels, affine))
    twice = [*whole.PerFrameFunctionalGroupsSequence] * 2
    whole.PerFrameFunctionalGroupsSequence = twice
    whole.NumberOfFrames = len(twice)
    places = [list(map(float, one.PlanePositionSequence[0].ImagePositionPatient))[2] for one in twice]
    order = np.argsort(places[9:], kind="stable") + 9
    source = Source((whole,), tuple((0, int(number) + 1) for number in order))
    seg = seg_of(made.finding(source, voxels, affine), "labelmap")
    named = {
        int(item.ReferencedFrameNumber)
        for frame in seg.PerFrameFunctionalGroupsSequence
        for item in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert named <= set(range(10, 19))


def test_planes_that_no_frame_holds_are_left_out(tmp_path: Path) -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    del datasets[4]
    planes = [(k if k < 4 else k - 1, 1) if k != 4 else None for k in range(9)]
    finding = made.finding(Source(tuple(datasets), tuple(planes)), voxels, affine)
    path = saved(seg_of(finding), tmp_path)
    assert np.array_equal(by_frames(path, finding), np.delete(made.labels_of(voxels), 4, axis=2))


def test_a_straightened_scan_is_written_on_its_leaning_frames(tmp_path: Path) -> None:
    voxels, affine = made.scan()
    shifts = np.stack([np.zeros(9), np.arange(9)], axis=1)
    straight = np.pad(voxels, ((0, 0), (2, 6), (0, 0)))
    datasets = series.slices(voxels, affine)
    finding = made.finding(Source(tuple(datasets), tuple((k, 1) for k in range(9)), shifts), straight, affine)
    labels, rows = made.labels_of(straight), voxels.shape[1]
    expected = np.stack([labels[:, k : k + rows, k] for k in range(9)], axis=2)
    assert np.array_equal(by_frames(saved(seg_of(finding), tmp_path), finding), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_a_segmentation_too(kind: Any, tmp_path: Path) -> None:
    voxels, affine = made.scan()
    finding = made.finding(series.slices(voxels, affine), voxels, affine, np.zeros(voxels.shape, np.uint8, "F"))
    path = saved(seg_of(finding, kind), tmp_path)
    assert not by_frames(path, finding).any()


def test_a_single_slice(tmp_path: Path) -> None:
    voxels, affine = made.scan((24, 31, 1))
    finding = made.finding(series.slices(voxels, affine), voxels, affine)
    assert np.array_equal(by_frames(saved(seg_of(finding), tmp_path), finding), made.labels_of(voxels))


@pytest.mark.parametrize("kind", KINDS)
def test_values_with_gaps_are_numbered_in_their_order(kind: Any, tmp_path: Path) -> None:
    voxels, affine = made.scan()
    values = np.array([0, 7, 300, 1000], np.uint16)
    labels = np.asfortranarray(values[made.labels_of(voxels)])
    card = made.card_for([{"name": f"v{value}", "value": value} for value in (1000, 7, 300)])
    finding = made.finding(series.slices(voxels, affine), voxels, affine, labels, card)
    seg = seg_of(finding, kind)
    assert [(one.number, one.value) for one in finding.structures] == [(1, 7), (2, 300), (3, 1000)]
    assert np.array_equal(by_frames(saved(seg, tmp_path), finding), made.labels_of(voxels))
    of_number = {item.SegmentNumber: item for item in seg.SegmentSequence}
    assert (of_number[3].SegmentLabel, of_number[3].SegmentDescription) == (
        "v1000",
        "value 1000 in the mask of the model",
    )


def test_more_than_255_structures(tmp_path: Path) -> None:
    voxels, affine = made.scan()
    labels = np.asfortranarray((np.arange(voxels.size).reshape(voxels.shape, order="F") % 301).astype(np.uint16))
    card = made.card_for([f"part {number}" for number in range(1, 301)])
    finding = made.finding(series.slices(voxels, affine), voxels, affine, labels, card)
    assert np.array_equal(by_frames(saved(seg_of(finding, "labelmap"), tmp_path), finding), labels)


def test_a_value_that_the_model_does_not_have_is_refused() -> None:
    voxels, affine = made.scan()
    labels = made.labels_of(voxels)
    labels[5, 5, 5] = 9
    with pytest.raises(OutputError, match=r"found \[9\]"):
        made.finding(series.slices(voxels, affine), voxels, affine, labels)


def test_labels_of_one_value_are_one_segment_and_long_names_are_cut() -> None:
    voxels, affine = made.scan()
    names = [{"name": "a\\b", "value": 1}, {"name": "c\n" + "long " * 20, "value": 1}, {"name": "é" * 70, "value": 2}]
    labels = np.minimum(made.labels_of(voxels), 2)
    seg = seg_of(made.finding(series.slices(voxels, affine), voxels, affine, labels, made.card_for(names)))
    first, second = (item.SegmentLabel for item in seg.SegmentSequence)
    assert first.startswith("a/b + c long long")
    assert max(len(first.encode()), len(second.encode())) <= 64  # the standard counts characters, some readers bytes
    assert second == "é" * 30 + "..."


def test_the_background_comes_last() -> None:
    """OHIF 3.13.2 counts items, and would give each structure the colour of the one before."""
    voxels, affine = made.scan()
    seg = seg_of(made.finding(series.slices(voxels, affine), voxels, affine), "labelmap")
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1, 2, 3, 4, 0]


def test_colours_are_those_of_the_preview() -> None:
    from voxtile.outputs.palette import colours

    voxels, affine = made.scan()
    seg = seg_of(made.finding(series.slices(voxels, affine), voxels, affine))
    for item, colour in zip(seg.SegmentSequence, colours(4), strict=True):
        lab = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        assert np.allclose(lab.to_rgb(), [255 * part for part in colour], atol=2)


def test_the_same_has_the_same_name_and_what_differs_another() -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    seg = seg_of(made.finding(datasets, voxels, affine))
    again = seg_of(made.finding(datasets, voxels, affine))
    assert (seg.SOPInstanceUID, seg.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
    assert seg.PixelData == again.PixelData
    dated = (
        "InstanceCreationDate",
        "InstanceCreationTime",
        "ContentDate",
        "ContentTime",
        "ContributingEquipmentSequence",
    )
    for one in (seg, again):
        for keyword in dated:
            delattr(one, keyword)
    assert seg == again
    labels = made.labels_of(voxels)
    labels[0, 0, 0] = 1
    other_mask = seg_of(made.finding(datasets, voxels, affine, labels))
    assert other_mask.SeriesInstanceUID == seg.SeriesInstanceUID
    others = [
        other_mask,
        seg_of(made.finding(datasets, voxels, affine), "labelmap"),
        seg_of(made.finding(datasets, voxels, affine, weights_sha256="12" * 32)),
        seg_of(made.finding(datasets, voxels, affine, changes=("overlap 0.5 -> 0.25",))),
        seg_of(made.finding(series.slices(voxels, affine), voxels, affine)),
    ]
    assert len({one.SOPInstanceUID for one in [seg, *others]}) == 1 + len(others)
    assert len({one.SeriesInstanceUID for one in [seg, *others[1:]]}) == len(others)


def test_an_object_carries_its_passport() -> None:
    voxels, affine = made.scan()
    finding = made.finding(
        series.slices(voxels, affine), voxels, affine, certificate_sha256="99" * 32, changes=("mirroring off",) * 70
    )
    seg = seg_of(finding)
    (equipment,) = seg.ContributingEquipmentSequence
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert len(equipment.ContributionDescription) <= 1024
    said = json.loads(equipment.ContributionDescription)
    for key in ("model", "version", "weights_sha256", "certificate_sha256", "engine", "precision", "scan_sha256"):
        assert said[key] == getattr(finding.passport, key)
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == "3"
    assert "mirroring off" in algorithm.AlgorithmParameters
    assert seg.SegmentSequence[0].TrackingUID != seg.SegmentSequence[1].TrackingUID


def test_labelmap_is_proposed_where_it_suits_better() -> None:
    voxels, affine = made.scan()
    plain = made.finding(series.slices(voxels, affine), voxels, affine)
    assert advice_of(plain, "binary") is None
    wide, place = made.scan((25, 31, 9))
    assert "25 columns" in str(advice_of(made.finding(series.slices(wide, place), wide, place), "binary"))
    many = made.finding(
        series.slices(voxels, affine), voxels, affine, card=made.card_for([f"rib {n}" for n in range(1, 13)])
    )
    assert "12 structures" in str(advice_of(many, "binary"))
    assert advice_of(many, "labelmap") is None


def test_a_code_of_the_model_goes_before_its_name() -> None:
    voxels, affine = made.scan()
    code = Code(value="T-1", meaning="Own thing", scheme="99MINE", laterality="left", category="lesion")
    card = made.card_for([{"name": "liver", "value": 1, "code": code}, "spleen", "heart"])
    seg = seg_of(made.finding(series.slices(voxels, affine), voxels, affine, card=card))
    own, spleen = seg.SegmentSequence[0], seg.SegmentSequence[1]
    kind = own.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("T-1", "99MINE", "Own thing")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert own.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert spleen.SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"
