"""Brings the headers of a scan into the form that DICOM's objects about it are written from: one for each frame.

Scanners and archives leave tags out, write values that are none, and store one frame an object or many. What is written
needs a patient, a study, a place and a reference for each frame. What is missing is left empty or derived, and told
without its value. Knows nothing of masks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import OutputError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.frames import Frame, stated_directions
from voxtile.io.dicom.objects.frames import frames_of as placed_frames
from voxtile.io.dicom.objects.headers import text_of
from voxtile.io.dicom.source import Source
from voxtile.outputs.dicom.identity import uid_of
from voxtile.outputs.dicom.texts import quietly

VERBATIM = ("PatientID", "PatientName", "StudyID", "AccessionNumber", "ReferringPhysicianName")
"""Texts that the standard wants in every object, empty where they are not known. They stay as they are, because an
archive has filed the scan under them."""

CHECKED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
"""The same for values that have a form; one that has another form is left empty."""

OPTIONAL = (
    "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
)  # fmt: skip
"""What else is said of patient and study, where the scan says it."""

UTF8 = "ISO_IR 192"

SEXES = ("M", "F", "O")

UID_FORM = re.compile(r"[0-9.]{1,64}")
"""What archives take for a UID. Leading zeros, which the standard forbids, are common, and a reference repeats them."""

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
"""The class that headers of single frames have for the libraries; references name the scan's own class."""


@dataclass(frozen=True)
class Reference:
    """The frame that a plane of the scan was read from.

    Attributes:
        sop_class: the UID of the object's class.
        sop_instance: the UID of the object.
        frame: its frame, from 1; None where the object has only one.
    """

    sop_class: str
    sop_instance: str
    frame: int | None


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a scan, in the order of `Source.on_frames`.

    Attributes:
        headers: for each frame a header (pydicom's Dataset) with patient, study, series and place, as an object with
            one frame has it. All have the same orientation and spacing.
        references: for each frame where it lies.
        modality: the scan's modality, such as "CT".
        positions: [frame, 3] millimetres in LPS, the middle of the first voxel of each frame.
        along: [2, 3] the directions, in LPS, in which columns and rows are counted.
        spacing: millimetres between the columns and between the rows.
        warnings: what is missing or wrong in the headers, in words, without values.
    """

    headers: tuple[Any, ...] = field(repr=False)
    references: tuple[Reference, ...] = field(repr=False)
    modality: str
    positions: NDArray[np.float64]
    along: NDArray[np.float64]
    spacing: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def first(self) -> Any:
        """The header of the first frame."""
        return self.headers[0]

    @property
    def uids(self) -> list[str]:
        """The UIDs of the study and of the objects, each once, in order."""
        objects = dict.fromkeys(reference.sop_instance for reference in self.references)
        return [str(self.first.StudyInstanceUID), *objects]

    def objects(self) -> list[Reference]:
        """Each object once, without its frames, in order."""
        found = {one.sop_instance: Reference(one.sop_class, one.sop_instance, None) for one in self.references}
        return list(found.values())


def frames_of(source: Source, scan_sha256: str) -> Frames:
    """The frames of a scan.

    Args:
        source: the objects that the scan was read from.
        scan_sha256: the digest of the scan; UIDs that it lacks are derived from it.

    Raises:
        OutputError: none of the scan's planes was read from a frame.
        InputError: the headers do not say where the frames lie.
    """
    with quietly("DICOM objects"):
        wanted = _own_planes(source)
        told: list[str] = []
        shared = _shared_header(source.datasets[wanted[0][0]], scan_sha256, told)
        places = _places(source, wanted)
        _add_place(shared, source.datasets[wanted[0][0]], places)
        references = _references(source, wanted, scan_sha256, told)
        headers = tuple(_frame_header(shared, place, number) for number, place in enumerate(places, 1))
        along = np.array(places[0].orientation).reshape(2, 3)
        between_rows, between_columns = places[0].spacing
        positions = np.array([place.position for place in places])
        modality = text_of(source.datasets[wanted[0][0]], "Modality") or "OT"
        return Frames(
            headers, tuple(references), modality, positions, along, (between_columns, between_rows), tuple(told)
        )  # fmt: skip


def _own_planes(source: Source) -> list[tuple[int, int]]:
    """Object and frame of each plane that was read from one, and not filled in. Raises OutputError where none was."""
    wanted = [plane for plane in source.planes if plane is not None]
    if not wanted:
        raise OutputError("expected a scan with at least one frame of its own, found none")
    return wanted


@dataclass(frozen=True)
class _Place:
    """Where a frame lies: as DICOM says it, in LPS; spacing between rows first."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    @staticmethod
    def of(frame: Frame) -> _Place:
        return _Place(tuple(frame.position.tolist()), stated_directions(frame), frame.spacing)


def _places(source: Source, wanted: Sequence[tuple[int, int]]) -> list[_Place]:
    """Where frames lie, by the rule by which the scan was read: another one could lay the mask elsewhere."""
    found = {
        number: [_Place.of(frame) for frame in placed_frames(source.datasets[number], File("the scan"))]
        for number in dict.fromkeys(number for number, _ in wanted)
    }
    return [found[number][frame - 1] for number, frame in wanted]


def _shared_header(dataset: Any, scan_sha256: str, told: list[str]) -> Any:
    """What all frames share besides their place: patient, study, series."""
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SpecificCharacterSet = UTF8
    header.SOPClassUID = CT_CLASS
    header.Modality = text_of(dataset, "Modality") or "OT"
    for keyword in VERBATIM:
        setattr(header, keyword, text_of(dataset, keyword))
    for keyword in CHECKED:
        setattr(header, keyword, _checked(dataset, keyword, told))
    for keyword in OPTIONAL:
        _copy(dataset, header, keyword)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(header, keyword, _uid(dataset, keyword, scan_sha256, told))
    header.PositionReferenceIndicator = text_of(dataset, "PositionReferenceIndicator") or None
    _copy(dataset, header, "LossyImageCompression")
    _copy(dataset, header, "BodyPartExamined")
    return header


def _add_place(header: Any, dataset: Any, places: Sequence[_Place]) -> None:
    """Adds what of the place all frames share. The first frame counts: the others differ from it by rounding."""
    from pydicom.valuerep import format_number_as_ds

    header.Rows, header.Columns = int(dataset.Rows), int(dataset.Columns)
    header.ImageOrientationPatient = [format_number_as_ds(value) for value in places[0].orientation]
    header.PixelSpacing = [format_number_as_ds(value) for value in places[0].spacing]
    thickness = _thickness(dataset, places)
    header.SliceThickness = None if thickness is None else format_number_as_ds(thickness)


def _thickness(dataset: Any, places: Sequence[_Place]) -> float | None:
    """The thickness of a slice, else the distance to the next one; None where there is neither."""
    try:
        said = float(dataset.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        said = 0.0
    if said > 0:
        return said
    across = np.cross(places[0].orientation[:3], places[0].orientation[3:])
    apart = np.abs(np.diff([np.dot(place.position, across) for place in places]))
    return float(np.median(apart)) if apart.size else None


def _frame_header(shared: Any, place: _Place, number: int) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    header = Dataset()
    header.update(shared)  # the same elements in all headers, so none of them may be set anew
    header.SOPInstanceUID = stand_in(number)
    header.InstanceNumber = number
    header.ImagePositionPatient = [format_number_as_ds(value) for value in place.position]
    return header


def stand_in(number: int) -> str:
    """The UID that a frame, from 1, has in its header, in place of that of its object, which may hold several."""
    return f"2.25.{number}"


def _references(source: Source, wanted: Sequence[tuple[int, int]], sha256: str, told: list[str]) -> list[Reference]:
    objects = {}
    derived = False
    for number in dict.fromkeys(number for number, _ in wanted):
        dataset = source.datasets[number]
        meta = getattr(dataset, "file_meta", None)
        sop_class = text_of(dataset, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID") or CT_CLASS
        instance = text_of(dataset, "SOPInstanceUID") or text_of(meta, "MediaStorageSOPInstanceUID")
        derived |= not instance
        objects[number] = sop_class, instance or uid_of("object", str(number), sha256)
    if derived:
        told.append("objects of the scan have no SOPInstanceUID: viewers cannot find the scan by what is written")
    return [Reference(*objects[number], frame if source.multi_frame else None) for number, frame in wanted]


def _checked(dataset: Any, keyword: str, told: list[str]) -> str | None:
    """A value that has its form; None for one that has not, which is told."""
    from pydicom.valuerep import DA, TM

    forms: dict[str, Callable[[str], Any]] = {
        "PatientSex": SEXES.index,
        "StudyTime": TM,
        "PatientBirthDate": DA,
        "StudyDate": DA,
    }
    text = text_of(dataset, keyword).strip()
    try:
        if text:
            forms[keyword](text)
    except (ValueError, TypeError, OverflowError):
        told.append(f"{keyword} of the scan has no valid form: left empty")
        return None
    return text or None


def _copy(dataset: Any, header: Any, keyword: str) -> None:
    """Copies an optional value, where it can be read."""
    try:
        if dataset.get(keyword) not in (None, ""):
            setattr(header, keyword, dataset[keyword].value)
    except Exception:  # what cannot be read is not needed
        return


def _uid(dataset: Any, keyword: str, scan_sha256: str, told: list[str]) -> str:
    text = text_of(dataset, keyword)
    if UID_FORM.fullmatch(text):
        return text
    if keyword != "FrameOfReferenceUID":
        told.append(f"the scan has no {keyword}: what is written cannot be filed with it by this UID")
    return uid_of(keyword, scan_sha256)
