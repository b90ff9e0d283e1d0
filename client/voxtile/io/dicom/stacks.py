"""Sorts the frames of DICOM objects into stacks, each of which may be a scan: by series, and by what differs within it.

Knows nothing of which stack is wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.frames import DISTINCTIONS, Frame
from voxtile.io.dicom.objects.headers import number_of, text_of
from voxtile.io.dicom.parting import parts_of

ALIKE = 1e-3
"""By how much directions, and pixel spacings as shares, of one stack may differ; real headers repeat them with jitter.
"""


ONE_SERIES = (
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "PatientID",
    "PatientName",
)
"""Tags in which the slices of one series agree."""

MODALITIES = ("CT", "MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG", "IO", "PX", "OPT", "OCT", "IVUS", "OT")
"""Modalities of scans that messages repeat; another word may be anything."""

NO_NUMBER = "none"
"""What stands for the number of a series that has none."""

LONG_NUMBER = "long"
"""What stands for a number that may be a patient's, or a date."""

LONGEST_NUMBER = 999_999
"""Scanners count series, and what they derive from each by hundreds; from seven digits on, numbers name somebody."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames of one series that may form a scan.

    Attributes:
        frames: the frames; each of one size, direction and pixel spacing.
        number: its place among the stacks with its series' number, from 1.
        of: how many stacks have that number.
    """

    frames: tuple[Frame, ...]
    number: int = 1
    of: int = 1

    @property
    def _first(self) -> Any:
        return self.frames[0].dataset

    @property
    def uid(self) -> str:
        """The series' UID; empty where it has none."""
        return text_of(self._first, "SeriesInstanceUID")

    @property
    def study(self) -> str:
        """The UID of the study; empty where it has none."""
        return text_of(self._first, "StudyInstanceUID")

    @property
    def patient(self) -> tuple[str, str]:
        """Whose scan it is: a number and a name, to be compared and never told."""
        return text_of(self._first, "PatientID"), text_of(self._first, "PatientName")

    @property
    def frame_of_reference(self) -> str:
        """The UID of the space in which its frames lie; empty where it has none."""
        return text_of(self._first, "FrameOfReferenceUID")

    @property
    def series_number(self) -> str:
        """The series' number, to be compared; empty where it has none."""
        number = number_of(self._first, "SeriesNumber")
        return "" if number is None else f"{number:.0f}"

    @property
    def told_number(self) -> str:
        """What stands for the series' number in messages."""
        if len(self.series_number) > len(str(LONGEST_NUMBER)):
            return LONG_NUMBER
        return self.series_number or NO_NUMBER

    @property
    def modality(self) -> str:
        """The modality, such as CT, to be compared; empty where none is said. Any text may stand there."""
        return text_of(self._first, "Modality").strip().upper()

    @property
    def description(self) -> str:
        """The series' description. It may name a patient: for a listing that was asked for, never for a log."""
        return text_of(self._first, "SeriesDescription")

    @property
    def kind(self) -> str:
        """ "localizer" or "derived" where its objects say that they are; else empty."""
        words = {word for i in _image_type_places() for word in self.frames[0].distinction(i).upper().split("\\")}
        if "LOCALIZER" in words:
            return "localizer"
        return "derived" if words & {"DERIVED", "SECONDARY"} else ""

    @property
    def place(self) -> str:
        """What `--series` takes for it; names nobody."""
        return f"{self.told_number}:{self.number}" if self.of > 1 else self.told_number

    @property
    def in_words(self) -> str:
        """What it is, in words that name nobody."""
        rows, columns = self.frames[0].size
        modality = self.modality if self.modality in MODALITIES else "unknown modality"
        what = f"{modality}, {columns} × {rows} × {len(self.frames)}"
        return f"series {self.place} ({what}{', ' + self.kind if self.kind else ''})"


def _image_type_places() -> list[int]:
    return [place for place, (keyword, *_) in enumerate(DISTINCTIONS) if keyword in ("ImageType", "FrameType")]


def stacks_of(frames: Iterable[Frame]) -> list[Stack]:
    """Returns the stacks of frames, those of a series beside each other, in the order in which the series came."""
    stacks = []
    for of_series in _parted(frames, _series_key):
        parts = [part for plane in _by_plane(of_series) for part in parts_of(plane)]
        parts.sort(key=len, reverse=True)
        stacks += [Stack(tuple(part)) for part in parts]
    numbers = Counter(stack.told_number for stack in stacks)
    counted: Counter[str] = Counter()
    for place, stack in enumerate(stacks):
        counted[stack.told_number] += 1
        stacks[place] = replace(stack, number=counted[stack.told_number], of=numbers[stack.told_number])
    return stacks


def _series_key(frame: Frame) -> Hashable:
    """Equal for frames of one series; objects without UIDs are told apart by what else they say of their series."""
    key = tuple(text_of(frame.dataset, keyword) for keyword in ONE_SERIES)
    return key if key[0] else (*key, text_of(frame.dataset, "SeriesNumber"), _folder(frame.file))


def _folder(file: File) -> str:
    return file.name.rpartition("/")[0]


def _by_plane(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames in lists of one size, direction and pixel spacing, to some jitter."""
    parts: list[list[Frame]] = []
    for frame in frames:
        alike = next((part for part in parts if _alike(part[0], frame)), None)
        if alike is None:
            parts.append([frame])
        else:
            alike.append(frame)
    return parts


def _alike(one: Frame, other: Frame) -> bool:
    return (
        one.size == other.size
        and np.allclose(one.spacing, other.spacing, rtol=ALIKE, atol=0)
        and np.allclose(one.along_columns, other.along_columns, rtol=0, atol=ALIKE)
        and np.allclose(one.along_rows, other.along_rows, rtol=0, atol=ALIKE)
    )


def _parted(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    """Frames in lists of equal keys, in the order in which each came first."""
    parts: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        parts.setdefault(key(frame), []).append(frame)
    return list(parts.values())


def without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[tuple[Frame, Frame]]]:
    """Returns frames without the copies of others, and each such copy with the frame that is kept.

    A copy has the UID of the other object, lies at the same place of the same series, and scales its pixels alike.
    """
    kept: dict[Hashable, Frame] = {}
    copies = []
    for count, frame in enumerate(frames):
        uid = text_of(frame.dataset, "SOPInstanceUID")
        place = (frame.number, *frame.position, *frame.along_columns, *frame.along_rows, *frame.spacing, *frame.size)
        key = (_series_key(frame), uid, *place, frame.slope, frame.intercept) if uid else count
        other = kept.setdefault(key, frame)
        if other is not frame:
            copies.append((other, frame))
    return list(kept.values()), copies
