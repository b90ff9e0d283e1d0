"""Tells who a scan is of, by its headers and the names of its files. Knows nothing of pages."""

from __future__ import annotations

from pathlib import Path

from voxtile.io.dicom.objects.headers import text_of
from voxtile.io.dicom.source import Source
from voxtile.io.volume import Volume

TAGS = (
    ("Name", "PatientName"), ("Identifier", "PatientID"), ("Born", "PatientBirthDate"), ("Sex", "PatientSex"),
    ("Date of the study", "StudyDate"), ("Accession number", "AccessionNumber"), ("Study", "StudyDescription"),
    ("Series", "SeriesDescription"), ("Number of the series", "SeriesNumber"),
)  # fmt: skip
"""What a page calls each, and DICOM's keyword."""


def patient_of(volume: Volume) -> list[tuple[str, str]]:
    """What is known of the patient and the study, by name; of a scan that is not DICOM only the names of its files."""
    if not isinstance(volume.native, Source):
        return [("File", Path(name).name) for name in volume.names]
    found = [(name, text_of(volume.native.datasets[0], keyword).strip()) for name, keyword in TAGS]
    return [(name, text) for name, text in found if text]
