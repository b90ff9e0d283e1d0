"""Takes the frames of a DICOM object: where each lies, how its numbers become values, and what tells it from others.

An object with one frame and one with many (enhanced, or converted from older objects) give the same. Knows nothing of
how frames form a scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.headers import (
    item_of,
    items_of,
    number_of,
    numbers_of,
    stated_number,
    states,
    tag_of,
    text_of,
)
from voxtile.io.dicom.objects.mosaic import check_no_mosaic

MOST_PIXELS = 1 << 16
"""Rows and columns that an object can have: their tags have 16 bits."""

WITH_UNITS = ("CT", "PT")
"""Modalities whose values have a unit, to which stored numbers are brought."""

UNIT_LENGTH = 0.01
"""How far the length of a direction may be from 1, and the cosine between two from 0; scanners round to six digits."""

DISTINCTIONS: tuple[tuple[str, str | None, int | None], ...] = (
    ("AcquisitionNumber", None, None),
    ("StackID", "FrameContentSequence", None),
    ("EchoNumbers", None, None),
    ("EchoTime", None, None),
    ("EffectiveEchoTime", "MREchoSequence", None),
    ("TemporalPositionIdentifier", None, None),
    ("TemporalPositionIndex", "FrameContentSequence", None),
    ("ContrastBolusAgentPhase", "ContrastBolusUsageSequence", None),
    ("TriggerTime", None, None),
    ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence", None),
    ("DiffusionBValue", None, None),
    ("DiffusionBValue", "MRDiffusionSequence", None),
    ("DiffusionGradientOrientation", None, None),
    ("SequenceName", None, None),  # where Siemens tells b-values apart, before it wrote DiffusionBValue
    ("InversionTime", None, None),
    ("FlipAngle", None, None),
    ("ImageType", None, None),
    ("FrameType", "MRImageFrameTypeSequence", None),
    ("FrameType", "CTImageFrameTypeSequence", None),
    ("ConvolutionKernel", None, None),
    ("ContrastBolusAgent", None, None),
    ("KVP", None, None),
    ("DimensionIndexValues", "FrameContentSequence", 0),
    ("DimensionIndexValues", "FrameContentSequence", 1),
    ("DimensionIndexValues", "FrameContentSequence", 2),
    ("DimensionIndexValues", "FrameContentSequence", 3),
    ("AcquisitionTime", None, None),
    ("AcquisitionDateTime", None, None),
    ("FrameAcquisitionDateTime", "FrameContentSequence", None),
    ("SeriesNumber", None, None),
    ("ContentTime", None, None),
)
"""The tags by which frames at one place are told apart: each with its functional group in an enhanced object, and which
of its values counts; None for all."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of pixels.

    Attributes:
        file: where its object lies.
        dataset: the object's header.
        number: its place in the object, from 1.
        position: [3] the middle of its first pixel, LPS millimetres.
        along_columns: [3] the direction from one column to the next.
        along_rows: [3] the direction from one row to the next.
        spacing: millimetres between rows, and between columns.
        slope: value = stored · slope + intercept.
        intercept: see `slope`.
        group: what an enhanced object says of this frame, and of all; empty for others.
        scaled: whether its object states `slope` or `intercept`.
    """

    file: File
    dataset: Any = field(repr=False)
    number: int
    position: NDArray[np.float64]
    along_columns: NDArray[np.float64]
    along_rows: NDArray[np.float64]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    group: tuple[Any, ...] = field(default=(), repr=False)
    scaled: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    @property
    def normal(self) -> NDArray[np.float64]:
        """[3] the direction across the plane: that of columns times that of rows."""
        normal: NDArray[np.float64] = np.cross(self.along_columns, self.along_rows)
        return normal / np.linalg.norm(normal)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.file.name}, frame {self.number}" if self.group else self.file.name

    def distinction(self, which: int) -> str:
        """The text of one of DISTINCTIONS; empty where it has none."""
        keyword, group, component = DISTINCTIONS[which]
        items = [self.dataset] if group is None else [item_of(one, group, self.name) for one in self.group]
        text = next((text_of(item, keyword) for item in items if item is not None), "")
        if component is None:
            return text
        parts = text.split("\\")
        return parts[component] if component < len(parts) else ""


def frames_of(dataset: Any, file: File) -> Iterator[Frame]:
    """Yields the frames of an object.

    Raises:
        InputError: it does not say where they lie, or in a way that cannot be; the tag is named.
    """
    _check_pixels(dataset, file.name)
    check_no_mosaic(dataset, file.name)
    count = stated_number(dataset, "NumberOfFrames", file.name)
    if count is not None and (count < 1 or count != int(count)):
        raise InputError(
            f"{file.name}: expected a whole number from 1 on as {tag_of('NumberOfFrames')}, found {count:g}; is it "
            "damaged? Fetch it again"
        )
    shared = items_of(dataset, "SharedFunctionalGroupsSequence", file.name)[:1]
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if count is not None and count > 1:
            raise InputError(
                f"{file.name}: expected an object that places each of its {count:.0f} frames "
                f"({tag_of('PerFrameFunctionalGroupsSequence')}), found none; export the series as one object a slice"
            )
        yield _frame(dataset, file, 1, tuple(shared))
        return
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence", file.name)
    if count != len(per_frame):
        raise InputError(f"{file.name}: expected {count or 0:.0f} frames as it says, found {len(per_frame)} placed")
    for number, own in enumerate(per_frame, 1):
        yield _frame(dataset, file, number, (own, *shared))


def _frame(dataset: Any, file: File, number: int, group: tuple[Any, ...]) -> Frame:
    name = f"{file.name}, frame {number}" if group else file.name
    places = (*group, dataset)
    position = _numbers(places, "PlanePositionSequence", "ImagePositionPatient", 3, name)
    directions = _numbers(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6, name)
    spacing = _numbers(places, "PixelMeasuresSequence", "PixelSpacing", 2, name)
    along_columns, along_rows = _directions(directions, name)
    if min(spacing) <= 0:
        raise InputError(f"{name}: expected {tag_of('PixelSpacing')} above 0, found {spacing[0]:g} and {spacing[1]:g}")
    scale = _rescale(places, name)
    slope, intercept = scale or (1.0, 0.0)
    return Frame(
        file,
        dataset,
        number,
        np.array(position),
        along_columns,
        along_rows,
        (spacing[0], spacing[1]),
        slope,
        intercept,
        group,
        scale is not None,
    )


def stated_directions(frame: Frame) -> tuple[float, ...]:
    """The six numbers of ImageOrientationPatient as a frame's object states them: `Frame` has them of length 1."""
    places = (*frame.group, frame.dataset)
    return _numbers(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6, frame.name)


def checked_scales(frames: Sequence[Frame]) -> list[str]:
    """Checks that either all frames of a scan say how their numbers become values, or none.

    Returns:
        What is to be told where none does and the modality's values have a unit.

    Raises:
        InputError: some do not; what they lack was lost on the way.
    """
    without = [frame for frame in frames if not frame.scaled]
    if 0 < len(without) < len(frames):
        raise InputError(
            f"{without[0].name}: expected {tag_of('RescaleSlope')} and {tag_of('RescaleIntercept')} as in other "
            "slices of the scan, found none; fetch the series again"
        )
    if without and text_of(without[0].dataset, "Modality") in WITH_UNITS:
        return [f"no {tag_of('RescaleSlope')} is stated: stored numbers are taken for values"]
    return []


def _stating(places: tuple[Any, ...], sequence: str, name: str) -> Iterator[Any]:
    """Yields what may state a tag: for each place the item of its functional group, and the place itself.

    Writers put tags of a group beside it: into the item of the frame, or into the root of the object.
    """
    for place in places:
        item = item_of(place, sequence, name)
        yield from (place,) if item is None else (item, place)


def _numbers(places: tuple[Any, ...], sequence: str, keyword: str, count: int, name: str) -> tuple[float, ...]:
    """The numbers of a tag, from the first place that states it."""
    for item in _stating(places, sequence, name):
        if states(item, keyword):
            numbers, found = numbers_of(item, keyword, count), f"other than {count} numbers"
            break
    else:
        numbers, found = None, "none"
    if numbers is not None:
        return numbers
    raise InputError(
        f"{name}: expected {tag_of(keyword)}, {count} numbers, found {found}; without it nobody knows where the slice "
        "lies: send the series again from the scanner or the archive, without removing this tag"
    )


def _directions(numbers: tuple[float, ...], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = np.array(numbers[:3]), np.array(numbers[3:])
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if max(abs(length - 1) for length in lengths) > UNIT_LENGTH or abs(one @ other) > UNIT_LENGTH:
        raise InputError(
            f"{name}: expected {tag_of('ImageOrientationPatient')} of two directions at right angles, each of length "
            f"1, found lengths {lengths[0]:.4g} and {lengths[1]:.4g}, cosine {one @ other:.4g}"
        )
    return one / lengths[0], other / lengths[1]


def _rescale(places: tuple[Any, ...], name: str) -> tuple[float, float] | None:
    """Slope and intercept; None where no place states one.

    Raises:
        InputError: a table stands in their place, places disagree, or they are no numbers by which values differ.
    """
    found: set[tuple[float, float]] = set()
    for item in _stating(places, "PixelValueTransformationSequence", name):
        if items_of(item, "ModalityLUTSequence", name):
            raise InputError(
                f"{name}: expected a slope and an intercept, found a table of values "
                f"({tag_of('ModalityLUTSequence')}); export the series with {tag_of('RescaleSlope')}"
            )
        slope, intercept = (stated_number(item, keyword, name) for keyword in ("RescaleSlope", "RescaleIntercept"))
        if slope == 0:
            raise InputError(f"{name}: expected {tag_of('RescaleSlope')} other than 0, found 0")
        if slope is not None and intercept is not None:
            found.add((slope, intercept))
        elif slope is not None or intercept is not None or all(item is not place for place in places):
            missing = "RescaleIntercept" if intercept is None else "RescaleSlope"
            raise InputError(
                f"{name}: expected {tag_of('RescaleSlope')} and {tag_of('RescaleIntercept')} together, found no "
                f"{missing}; fetch the series again"
            )
    if len(found) > 1:
        raise InputError(
            f"{name}: expected one {tag_of('RescaleSlope')} and one {tag_of('RescaleIntercept')}, found {len(found)} "
            "pairs that differ, for the frame, for all frames or for the object; export the series again"
        )
    return found.pop() if found else None


def _check_pixels(dataset: Any, name: str) -> None:
    """Checks that an object's pixels are single numbers in a plane of some size. Raises InputError."""
    for keyword in ("Rows", "Columns"):
        size = number_of(dataset, keyword)
        if size is None or not 0 < size < MOST_PIXELS:
            raise InputError(f"{name}: expected {tag_of(keyword)} above 0, found {'none' if size is None else size}")
    samples = stated_number(dataset, "SamplesPerPixel", name)
    photometric = text_of(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if samples not in (None, 1) or not photometric.startswith("MONOCHROME"):
        raise InputError(
            f"{name}: expected one number a pixel ({tag_of('PhotometricInterpretation')} MONOCHROME2), found colours; "
            "choose the series that this picture was made from"
        )
