"""Writes the picture of a mask, with the volumes of its structures, as a DICOM Secondary Capture that any viewer shows.

Knows nothing of servers.
"""

from __future__ import annotations

from typing import Any

from voxtile.extras import require
from voxtile.io.dicom.objects.headers import text_of
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.items import object_items
from voxtile.outputs.dicom.provenance import MANUFACTURER, series_number, sign
from voxtile.outputs.dicom.seg import check_installed
from voxtile.outputs.dicom.texts import quietly
from voxtile.outputs.preview import picture

WORKSTATION = "WSD"
"""How the picture came to be: made on a workstation."""

UNPAIRED_PARTS = frozenset(
    {
        "ABDOMEN", "ABDOMENPELVIS", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CSPINE", "HEAD", "HEADNECK",
        "HEART", "LIVER", "LSPINE", "NECK", "PANCREAS", "PELVIS", "PROSTATE", "SKULL", "SPINE", "TSPINE", "WHOLEBODY",
    }
)  # fmt: skip
"""Body parts that are no pair. With any other word DICOM asks for a side, which a picture of a whole scan has not."""

WHOLE_BODY = "WHOLEBODY"


def check_picture_installed() -> None:
    """Checks, before any work, that the packages are there.

    Raises:
        MissingExtraError: one is not.
    """
    check_installed()
    require("matplotlib", "preview", "a picture")


def capture_of(finding: Finding) -> Any:
    """The Secondary Capture of a segmentation.

    Returns:
        The object, a pydicom Dataset with its file's header.

    Raises:
        MissingExtraError: a package is missing.
        OutputError: it cannot be made of this scan.
    """
    check_picture_installed()
    with quietly("the Secondary Capture"):
        return _capture(finding)


def _capture(finding: Finding) -> Any:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian

    header = finding.frames.first
    capture = hd.sc.SCImage(
        pixel_array=picture(finding.volume, finding.labels, finding.card.labels),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=finding.identity.series("sc"),
        series_number=series_number("sc"),
        sop_instance_uid=finding.identity.instance("sc"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    capture.PatientOrientation = None  # three slices, each with letters at its sides
    capture.ConversionType = WORKSTATION
    capture.BurnedInAnnotation = "NO"  # names of structures, nothing of the patient
    part = text_of(header, "BodyPartExamined").strip().upper()
    capture.BodyPartExamined = part if part in UNPAIRED_PARTS else WHOLE_BODY
    capture.SourceImageSequence = object_items(finding.frames.objects())
    sign(capture, finding, "picture")
    return capture
