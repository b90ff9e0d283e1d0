"""Writes a mask as a DICOM structure set (RTSTRUCT): closed outlines of each structure on the frames of the scan.

Knows nothing of servers.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.frames import Frames, Reference
from voxtile.outputs.dicom.items import add_side, code_item, name_reference, object_items
from voxtile.outputs.dicom.outlines import outlines
from voxtile.outputs.dicom.provenance import series_number, sign
from voxtile.outputs.dicom.seg import check_installed
from voxtile.outputs.dicom.structures import Structure
from voxtile.outputs.dicom.texts import fitted, quietly

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""What a structure set calls the class of a study; DICOM has retired it and still asks for it."""

CONTOUR_DATA = 0x30060050


def structure_set_of(finding: Finding) -> Any:
    """The RTSTRUCT of a segmentation: a region for each structure, also for one that was not found.

    Returns:
        The object, a pydicom Dataset with its file's header. VR is implicit: explicit VR has no room for long outlines.

    Raises:
        MissingExtraError: a package is missing.
        OutputError: it cannot be made of this scan.
    """
    check_installed()
    with quietly("the RTSTRUCT"):
        dataset = _new_object(finding)
        dataset.StructureSetROISequence = [_region(finding, one) for one in finding.structures]
        dataset.ROIContourSequence = _contours(finding)
        dataset.RTROIObservationsSequence = [_observation(one) for one in finding.structures]
        sign(dataset, finding, "contours")
        return dataset


def millimetres(points: NDArray[np.float64], frames: Frames, number: int) -> NDArray[np.float64]:
    """[n, 3] millimetres in LPS of points [n, 2] in voxels along i and j on a frame, from 0."""
    return np.asarray(frames.positions[number] + (points * frames.spacing) @ frames.along)


def _new_object(finding: Finding) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = finding.identity.instance("rtstruct")
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now, header = datetime.datetime.now(), finding.frames.first
    for keyword in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator",
    ):  # fmt: skip
        setattr(dataset, keyword, header.get(keyword))
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = finding.identity.series("rtstruct")
    dataset.SeriesNumber, dataset.InstanceNumber = series_number("rtstruct"), 1
    dataset.Modality, dataset.OperatorsName, dataset.ApprovalStatus = "RTSTRUCT", None, "UNAPPROVED"
    dataset.StructureSetLabel = "VOXTILE"
    dataset.StructureSetName = fitted(finding.card.name)
    dataset.StructureSetDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(finding.frames)]
    return dataset


def _frame_of_reference(frames: Frames) -> Any:
    from pydicom.dataset import Dataset

    series = Dataset()
    series.SeriesInstanceUID = frames.first.SeriesInstanceUID
    series.ContourImageSequence = object_items(frames.objects())
    study = name_reference(Dataset(), Reference(STUDY_CLASS, str(frames.first.StudyInstanceUID), None))
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = frames.first.FrameOfReferenceUID
    item.RTReferencedStudySequence = [study]
    return item


def _region(finding: Finding, structure: Structure) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber = structure.number
    item.ReferencedFrameOfReferenceUID = finding.frames.first.FrameOfReferenceUID
    item.ROIName = fitted(structure.name)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = fitted(finding.card.name)
    return item


def _contours(finding: Finding) -> list[Any]:
    """An item for each structure, with its contours on all frames."""
    from pydicom.dataset import Dataset

    found: dict[int, list[Any]] = {one.number: [] for one in finding.structures}
    for frame, reference in enumerate(finding.frames.references):  # each is looked at once, however many structures
        for number, points in _outlines(finding.numbers[:, :, frame]):
            found[number].append(_contour(millimetres(points, finding.frames, frame), reference))
    items = []
    for structure in finding.structures:
        item = Dataset()
        item.ReferencedROINumber = structure.number
        item.ROIDisplayColor = list(structure.rgb)
        if found[structure.number]:
            item.ContourSequence = found[structure.number]
        items.append(item)
    return items


def _outlines(numbers: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The outlines on a frame [i, j] of numbers: each with its structure's number, [n, 2] in voxels along i and j."""
    for number in np.flatnonzero(np.bincount(numbers.ravel(order="K"))[1:]) + 1:
        mask = numbers == number
        i, j = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        for points in outlines(mask[i[0] : i[-1] + 1, j[0] : j[-1] + 1]):
            yield int(number), points + np.array([i[0], j[0]])


def _contour(points: NDArray[np.float64], reference: Reference) -> Any:
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    item = Dataset()
    item.ContourImageSequence = [name_reference(Dataset(), reference)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    # As bytes: a number object for each coordinate would take most of the time.
    data = "\\".join(f"{value:.3f}" for value in points.ravel().tolist()).encode()
    data += b" " * (len(data) % 2)
    tag = Tag(CONTOUR_DATA)
    item[tag] = RawDataElement(tag, "DS", len(data), data, 0, True, True)
    return item


def _observation(structure: Structure) -> Any:
    from pydicom.dataset import Dataset

    code, item = structure.code, Dataset()
    item.ObservationNumber = item.ReferencedROINumber = structure.number
    item.RTROIInterpretedType = "ORGAN" if code.category == "anatomy" else ""
    item.ROIInterpreter = None
    kind = code_item(code.value, code.scheme, code.meaning)
    add_side(kind, code)
    item.RTROIIdentificationCodeSequence = [kind]
    return item
