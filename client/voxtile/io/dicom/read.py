"""Reads a scan from DICOM: from a folder, a zip archive or one object, which may hold several series.

Knows nothing of models.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.extras import require
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.choosing import chosen_stack
from voxtile.io.dicom.grid import Grid, grid_of
from voxtile.io.dicom.objects.files import File, files_of_archive, files_of_folder, is_dicom
from voxtile.io.dicom.objects.frames import Frame, checked_scales, frames_of
from voxtile.io.dicom.objects.headers import number_of, numbers_of, read_header, says_class, says_image, tag_of, text_of
from voxtile.io.dicom.objects.pixels import read_planes, stored_type
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.io.dicom.objects.strangers import (
    LOOKED_AT,
    Stranger,
    damaged_stranger,
    is_dicom_file,
    lost,
    may_be_dicom,
    stranger_of,
)
from voxtile.io.dicom.source import Source
from voxtile.io.dicom.stacks import Stack, stacks_of, without_copies
from voxtile.io.dicom.straighten import straightened
from voxtile.io.dicom.whole import check_alone, check_whole
from voxtile.io.formats.base import reading
from voxtile.io.placed import placed
from voxtile.io.stored import Admit, Stored

ZIP = b"PK\x03\x04"

MADE_FROM_SCANS = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "M3D", "ANN"})
"""Modalities of what is no scan itself; some of these objects have pixels."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""How the classes of pictures of screens and papers begin."""

NO_DICOM = "no DICOM"
NO_CLASS = "is DICOM that says neither of what class nor of what size it is; fetch it again"
NO_SCAN = "DICOM that is no slice of a scan"


def holds_dicom(place: Path) -> bool:
    """Whether a path is a DICOM object, or a folder or an archive in which one lies; only marks are read."""
    if place.is_dir():
        return _any_dicom(files_of_folder(place))
    file = File(str(place), path=place)
    return is_dicom_file(file) or (_begins_zip(file) and _any_dicom(files_of_archive(place, str(place))))


def bytes_hold_dicom(data: bytes) -> bool:
    """Whether bytes are those of a DICOM object, or of an archive in which one lies."""
    return is_dicom(data[:LOOKED_AT]) or (data.startswith(ZIP) and _any_dicom(files_of_archive(data, "the archive")))


def _any_dicom(files: Iterable[File]) -> bool:
    try:
        return any(map(may_be_dicom, files))
    except InputError:
        return False


def _begins_zip(file: File) -> bool:
    try:
        return file.first(len(ZIP)) == ZIP
    except InputError:
        return False


def read_dicom(place: Path | bytes, name: str, choice: SeriesChoice, admit: Admit) -> Stored:
    """Reads the scan that one series is.

    Args:
        place: a folder, a zip archive or an object; or the bytes of one of the two last.
        name: what messages call it.
        choice: which series, and what to do where its slices form no plain grid.
        admit: asked before a pixel is read.

    Returns:
        The scan; i runs along a frame's columns, j along its rows, k along the normal of both. Its `native` is a
        `Source`.

    Raises:
        InputError: it holds no scan, several of which none is chosen, or one that cannot be used. The file, the tag
            and what to do are named; no message repeats a text, a date or a UID from an object.
        MissingExtraError: what DICOM needs is not installed.
    """
    require("pydicom", "dicom", "a DICOM scan")
    with quietly(), reading(name):
        found = _found(_files(place, name), name)
        stack, told = chosen_stack(found.stacks, choice, name)
        found.check(stack)
        check_whole(stack, name)
        if isinstance(place, Path) and place.is_file():
            check_alone(place, stack, name)
        grid = grid_of(stack.frames, choice, name)
        found.check_copies(stack)
        return _stored(grid, stack, name, admit, [*told, *found.warnings])


def _files(place: Path | bytes, name: str) -> Iterable[File]:
    if isinstance(place, Path) and place.is_dir():
        return files_of_folder(place)
    first = File(name, data=place).first(4) if isinstance(place, bytes) else File(name, path=place).first(4)
    if first == ZIP:
        return files_of_archive(place, name)
    return [File(name, data=place) if isinstance(place, bytes) else File(name, path=place)]


@dataclass(frozen=True, eq=False)
class Found:
    """What files hold.

    Attributes:
        stacks: the stacks of frames.
        others: what else is there, and how many files of it.
        problems: what is wrong with objects that cannot be used, each with the UID of its series; None where
            its header cannot be read.
        copies: frames that are there a second time, each with the one that is kept.
    """

    stacks: list[Stack]
    others: Counter[str]
    problems: list[tuple[str | None, InputError]]
    copies: list[tuple[Frame, Frame]]

    def check(self, stack: Stack) -> None:
        """Raises the first problem that may concern `stack`: a slice at its end would not be missed."""
        for series, error in self.problems:
            if series in (None, stack.uid):
                raise error

    @property
    def warnings(self) -> list[str]:
        """What lies beside the scan, in words."""
        unused = Counter({"objects that cannot be used": len(self.problems)}) if self.problems else Counter()
        beside = self.others + unused
        said = [f"beside the scan: {_counted(beside)}"] if beside else []
        return said + ([f"{len(self.copies)} slices are there twice; one of each is used"] if self.copies else [])

    def check_copies(self, stack: Stack) -> None:
        """Raises InputError where a copy of one of its frames holds other pixels: nobody knows which are right."""
        of_stack = {id(frame) for frame in stack.frames}
        for kept, copy in self.copies:
            if id(kept) not in of_stack:
                continue
            one, other = (read_planes([frame], stored_type([frame])) for frame in (kept, copy))
            if not np.array_equal(one, other):
                raise InputError(
                    f"{kept.name}: expected equal pixels in objects of one {tag_of('SOPInstanceUID')}, found others in "
                    f"{copy.name}; remove the one that is wrong"
                )


def _found(files: Iterable[File], name: str) -> Found:
    others: Counter[str] = Counter()
    frames: list[Frame] = []
    problems: list[tuple[str | None, InputError]] = []
    strangers: list[Stranger] = []
    objects: list[str] = []
    for file in files:
        stranger = stranger_of(file)
        if stranger is not None:
            strangers.append(stranger)
            continue
        try:
            header = read_header(file)
        except InputError as error:
            strangers.append(damaged_stranger(file, error))
            continue
        objects.append(file.name)
        series = text_of(header, "SeriesInstanceUID") or None
        try:
            if _is_slice(header):
                frames += frames_of(header, file)
            elif says_class(header):
                others[NO_SCAN] += 1
            else:
                strangers.append(damaged_stranger(file, InputError(NO_CLASS)))
        except InputError as error:
            problems.append((series, error))
    missed = lost(strangers, objects)
    problems += [(None, one.error) for one in missed]
    others.update({NO_DICOM: len(strangers) - len(missed)} if len(strangers) > len(missed) else {})
    if not frames and problems:
        raise problems[0][1]
    if not frames:
        raise InputError(f"{name}: expected the slices of a scan, found {_counted(others) or 'no file'}")
    frames, copies = without_copies(frames)
    return Found(stacks_of(frames), others, problems, copies)


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} file{'s' * (count > 1)} with {what}" for what, count in sorted(others.items()))


def _is_slice(header: Any) -> bool:
    """Whether an object is an image of a scan: no catalogue, report, screenshot, or what was made from a scan."""
    if text_of(header, "Modality").upper() in MADE_FROM_SCANS:
        return False
    if number_of(header, "Rows") is None and number_of(header, "Columns") is None:
        return says_image(header)  # one that was cut off, which is refused
    captured = text_of(header, "SOPClassUID").startswith(SECONDARY_CAPTURE)
    return not (captured and numbers_of(header, "ImagePositionPatient", 3) is None)


def _stored(grid: Grid, stack: Stack, name: str, admit: Admit, warnings: Sequence[str]) -> Stored:
    """Reads the pixels of a grid."""
    used = [frame for frame in grid.planes if frame is not None]
    warnings = [*warnings, *checked_scales(used)]
    dtype = stored_type(used)
    scalings = {(frame.slope, frame.intercept) for frame in used}
    admit((*grid.size, len(grid.planes)), dtype, len(scalings) > 1 or scalings != {(1.0, 0.0)})
    raw = read_planes(grid.planes, dtype)
    slope, intercept = scalings.pop() if len(scalings) == 1 else (1.0, 0.0)
    if scalings:
        raw = _scaled(raw, grid.planes)
    if grid.shifts is not None:
        raw = straightened(raw, grid.shifts, grid.size, _lowest(raw, grid.planes, slope))
    _fill_gaps(raw, grid.planes)
    source = _source(grid)
    return placed(
        raw.T,
        grid.affine,
        name,
        slope=slope,
        inter=intercept,
        warnings=tuple(warnings),
        native=source,
        changes=grid.changes,
        frame_of_reference=stack.frame_of_reference,
    )


def _scaled(raw: NDArray[Any], planes: Sequence[Frame | None]) -> NDArray[np.float32]:
    """Values of planes that have a slope or an intercept each."""
    values = np.empty(raw.shape, np.float32)
    for k, frame in enumerate(planes):
        values[k] = 0 if frame is None else raw[k].astype(np.float64) * frame.slope + frame.intercept
    return values


def _lowest(raw: NDArray[Any], planes: Sequence[Frame | None], slope: float) -> float:
    """The stored number of the lowest value of the frames."""
    known = [plane for plane, frame in zip(raw, planes, strict=True) if frame is not None]
    return float(min(plane.min() for plane in known) if slope > 0 else max(plane.max() for plane in known))


def _fill_gaps(raw: NDArray[Any], planes: Sequence[Frame | None]) -> None:
    """Fills planes that no frame holds, along a straight line between their neighbours."""
    known = [k for k, frame in enumerate(planes) if frame is not None]
    for before, after in itertools.pairwise(known):
        for k in range(before + 1, after):
            share = (k - before) / (after - before)
            between = raw[before] * (1 - share) + raw[after] * share
            raw[k] = np.rint(between) if raw.dtype.kind in "iu" else between


def _source(grid: Grid) -> Source:
    datasets: list[Any] = []
    numbers: dict[int, int] = {}
    planes: list[tuple[int, int] | None] = []
    for frame in grid.planes:
        if frame is None:
            planes.append(None)
            continue
        if id(frame.dataset) not in numbers:
            numbers[id(frame.dataset)] = len(datasets)
            datasets.append(frame.dataset)
        planes.append((numbers[id(frame.dataset)], frame.number))
    return Source(tuple(datasets), tuple(planes), grid.shifts)
