"""A DICOM series in which every text, date, number and UID that a patient could be known by is a word of its own.

Whatever repeats one of them gives itself away, and the word says which tag it came from. Knows nothing of what is done
with the series.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

TEXTS = {"PN", "LO", "LT", "SH", "ST", "UT", "UC", "CS", "AE", "UR"}

FORMS = {
    **dict.fromkeys(TEXTS, "ZQ7X{:04d}"),
    "PN": "ZQ7X{:04d}^Jürgen",
    "UR": "http://ZQ7X{:04d}.example/",
    "DA": "1889{month:02d}{day:02d}",
    "TM": "071907.77{:04d}",
    "DT": "18891011071907.77{:04d}",
    "AS": "889Y",
    "DS": "7719.{:04d}",
    "IS": "7719{:04d}",
    "UI": "1.2.7719.{:d}",
}
"""By the kind of a tag, its canary of some number; a day has a month and a day instead."""

WORD = "ZQ7X9003"
"""The text that `with_text` puts in."""

NAMED = "ZN4M{:04d}"
"""The name of a file or a folder: messages of a command may repeat it, for its user wrote it."""

SEEN = re.compile(
    r"zq7x\d{0,4}|(?<![\da-f])1889-?\d\d-?\d\d(?![\da-f])|071907\.77\d{4}|(?<!\w)889y"
    r"|(?<![\da-f.])7719\.?\d{4}(?![\da-f])|(?<![\d.])1\.2\.7719\.\d+",
)
"""Any canary, in a text of small letters; digits alone may stand in a digest by chance."""

STEMS = ("zq7x", "1889", "071907", "889y", "7719")
"""A text without one of these has no canary, which is quickly seen."""

SEEN_NAME = re.compile(r"zn4m\d{4}", re.IGNORECASE)

NEEDED = frozenset(
    {
        "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "SeriesNumber", "InstanceNumber",
        "SliceThickness", "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
        "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    }
)  # fmt: skip
"""What must be as it is, so that the series is one."""

UNPLACED = (0x0000, 0x0002, 0x0004, 0x0006, 0xFFFA, 0xFFFE)
"""Groups that are no part of an object's own header."""


@functools.cache
def all_texts(*groups: int) -> Dataset:
    """Every tag of DICOM's dictionary, or of some groups of it, that holds a text, a date, a number as text or a UID.

    Each has its canary.
    """
    found = Dataset()
    number = 0
    with config.disable_value_validation():
        for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
            if kind not in FORMS or not keyword or keyword in NEEDED or tag >> 16 in UNPLACED:
                continue
            number += 1
            if groups and tag >> 16 not in groups:
                continue
            found.add(DataElement(tag, kind, canary(kind, number)))
        for keyword in ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedStudySequence"):
            setattr(found, keyword, Items([_inner(number := number + 1)]))
        found.add(DataElement(0x00190010, "LO", canary("LO", number + 1)))
        found.add(DataElement(0x00191001, "LT", canary("LT", number + 2)))
        found.add(DataElement(0x00191002, "SQ", Items([_inner(number + 3)])))
    return found


def _inner(number: int) -> Dataset:
    item = Dataset()
    for keyword, kind in (("PatientID", "LO"), ("ReferencedSOPInstanceUID", "UI"), ("CodeMeaning", "LO")):
        setattr(item, keyword, canary(kind, number))
    return item


def canary(kind: str, number: int) -> str:
    """The canary of a kind of tag."""
    return FORMS[kind].format(number, month=1 + number % 12, day=1 + number // 12 % 28)


def marked(objects: Sequence[FileDataset], *groups: int) -> list[FileDataset]:
    """Puts canaries into all objects of a series, in their files' headers too; returns them."""
    texts = all_texts(*groups)
    with config.disable_value_validation():
        for number, one in enumerate(objects):
            one.update(texts)  # the same elements in all: a change puts a new one in its place
            one.SpecificCharacterSet = "ISO_IR 100"
            one.add_new("SOPInstanceUID", "UI", canary("UI", 90000 + number))
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.file_meta.SourceApplicationEntityTitle = canary("AE", 9001)
            one.preamble = canary("LO", 9002).encode().ljust(128, b"\0")
    return list(objects)


def with_text(given: Sequence[FileDataset], keyword: str) -> None:
    """Puts a text where objects say where or how they lie. Once they are saved, `retyped` says what it should be."""
    for one in given:
        if keyword != "TransferSyntaxUID":
            one.add_new(keyword, "LO", WORD)


def retyped(file: Path, keyword: str, kind: str) -> None:
    """Makes the text in a file, which `with_text` put there, a value of the kind that its tag should have."""
    content, tag = file.read_bytes(), Tag(keyword)
    if keyword == "TransferSyntaxUID":
        plain = ExplicitVRLittleEndian.encode() + b"\0"
        before, after = plain, WORD.encode().ljust(len(plain))
    else:
        start = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
        end = len(WORD).to_bytes(2, "little") + WORD.encode()
        before, after = start + b"LO" + end, start + kind.encode() + end
    assert content.count(before) == 1
    file.write_bytes(content.replace(before, after))


def canaries(content: str | bytes) -> set[str]:
    """The canaries in a text or in the bytes of a file."""
    if isinstance(content, bytes):
        content = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("latin-1")
    small = content.lower()
    return set(SEEN.findall(small)) if any(stem in small for stem in STEMS) else set()


def names(content: str | bytes) -> set[str]:
    """The names of files in a text or in bytes."""
    return set(SEEN_NAME.findall(content if isinstance(content, str) else content.decode("latin-1")))


def elements(dataset: Dataset) -> Iterator[Any]:
    """All elements of an object, those of items of sequences too, but not the sequences themselves."""
    return (one for one in dataset.iterall() if one.VR != "SQ")
