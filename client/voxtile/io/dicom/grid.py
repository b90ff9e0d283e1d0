"""Puts frames in order along their normal, and finds the grid that they form; what is no plain grid is named.

Positions and orientations alone count: neither the number of a slice, nor its thickness, nor its file's name.
Knows nothing of files or pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.objects.frames import Frame
from voxtile.io.dicom.objects.headers import item_of, number_of, tag_of

UNEVEN = 0.05
"""How far distances between slices may differ from their mean; real scanners' do by one part in a hundred."""

OFF_PLACE = 0.2
"""How far a slice may lie from its plane of the grid along the normal, as a share of the distance between planes: small
differences between distances add up."""

SAME_PLACE = 0.01
"""Slices nearer than this share of the usual distance lie at one place."""

SIDEWAYS = 0.1
"""How far, in pixels, a slice may lie beside the line on which the others do."""

STEEPEST = 45.0
"""Degrees by which a gantry may be tilted; scanners' reach 30."""

NO_TILT = 0.5
"""Pixels by which the first and the last slice may lie beside each other, and still nobody calls it a tilt."""

MOST_FILLED = 0.5
"""The largest share of slices that may be filled in."""

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid that frames form.

    Attributes:
        planes: for each plane k, its frame; None for one that is filled in.
        affine: [4, 4] voxel (column, row, plane) to RAS millimetres.
        shifts: [k, 2] by how many columns and rows each plane is moved to straighten a tilt; None where none is. None
            is negative: the grid is so much larger than a frame that each plane lies within it.
        changes: what the choices changed, in words.
    """

    planes: tuple[Frame | None, ...]
    affine: NDArray[np.float64]
    shifts: NDArray[np.float64] | None = None
    changes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of each plane: those of a frame, and of a scan that is straightened some more."""
        rows, columns = next(frame.size for frame in self.planes if frame is not None)
        if self.shifts is None:
            return columns, rows
        more = np.ceil(self.shifts.max(axis=0)).astype(int)
        return columns + int(more[0]), rows + int(more[1])


def in_order(frames: Sequence[Frame]) -> tuple[list[Frame], NDArray[np.float64]]:
    """Returns frames in their order along the normal, and [n] their places along it in millimetres."""
    normal = frames[0].normal
    places = np.array([frame.position @ normal for frame in frames])
    order = np.argsort(places, kind="stable")
    return [frames[number] for number in order], places[order]


def is_even(frames: Sequence[Frame]) -> bool:
    """Whether frames lie at even distances, each at a place of its own."""
    return _are_even(in_order(frames)[1])


def has_gaps(frames: Sequence[Frame]) -> bool:
    """Whether frames lie at places of an even grid of which some are empty."""
    places = in_order(frames)[1]
    counts = _counts(places)
    return counts is not None and int(counts.max()) > 1


def _are_even(places: NDArray[np.float64]) -> bool:
    """Whether places in their order are those of an even grid, to the jitter of scanners."""
    return _fit(places, np.ones(len(places) - 1))


def _fit(places: NDArray[np.float64], counts: NDArray[Any]) -> bool:
    """Whether places in their order lie so many steps of one length from each other."""
    if len(counts) == 0:
        return True
    if not (np.diff(places) > 0).all():
        return False
    step = (places[-1] - places[0]) / counts.sum()
    off = places - places[0] - step * np.concatenate([[0], np.cumsum(counts)])
    uneven = np.abs(np.diff(places) / counts - step)
    return bool(uneven.max() <= step * UNEVEN and np.abs(off).max() <= step * OFF_PLACE)


def _counts(places: NDArray[np.float64]) -> NDArray[np.int_] | None:
    """How many steps of the shortest length lie between neighbours; None where these are no whole numbers."""
    steps = np.diff(places)
    if steps.size == 0 or steps.min() <= 0:
        return None
    step = float(np.median(steps[steps <= steps.min() * (1 + 2 * UNEVEN)]))
    counts = np.rint(steps / step).astype(int)
    return counts if _fit(places, counts) else None


def at_one_place(frames: Sequence[Frame]) -> tuple[Frame, Frame] | None:
    """Two frames at one place; None where each has its own."""
    ordered, places = in_order(frames)
    steps = np.diff(places)
    usual = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 0.0
    close = np.flatnonzero(steps <= max(usual * SAME_PLACE, 1e-3))
    return None if close.size == 0 else (ordered[close[0]], ordered[close[0] + 1])


def grid_of(frames: Sequence[Frame], choice: SeriesChoice, name: str) -> Grid:
    """Returns the grid of frames of one size, orientation and pixel spacing.

    Args:
        frames: the frames, in any order.
        choice: what to do about gaps and a tilt.
        name: what messages call the scan.

    Raises:
        InputError: they lie at one place, at uneven distances, or beside each other, or a tilted gantry sheared them;
            the slices are named, and the distances in millimetres.
    """
    twins = at_one_place(frames)
    if twins is not None:
        raise InputError(
            f"{name}: expected one slice at each place, found two at one: {twins[0].name} and {twins[1].name}; no "
            "tag says for certain which of them belongs to which scan; remove one, or export the series again"
        )
    ordered, places = in_order(frames)
    planes = _filled(ordered, places, choice, name)
    filled = len(planes) - len(ordered)
    changes = [f"{filled} missing slices filled in between their neighbours"] if filled else []
    step = (ordered[-1].position - ordered[0].position) / max(len(planes) - 1, 1)
    if len(planes) == 1:
        step = ordered[0].normal * _thickness(ordered[0], name)
    _check_on_a_line(planes, step, name)
    affine, shifts = _placed(ordered[0], step, len(planes), choice, name)
    if shifts is not None:
        changes.append(f"a gantry tilted by {_angle(ordered[0], step):.2f} degrees straightened")
    return Grid(tuple(planes), TO_RAS @ affine, shifts, tuple(changes))


def _filled(
    ordered: Sequence[Frame], places: NDArray[np.float64], choice: SeriesChoice, name: str
) -> list[Frame | None]:
    """The planes: the frames, and None for each that is missing between two."""
    if _are_even(places):
        return list(ordered)
    steps = np.diff(places)
    wide = int(np.argmax(steps))
    between = f"{ordered[wide].name} and {ordered[wide + 1].name}"
    counts = _counts(places)
    missing = 0 if counts is None else int((counts - 1).sum())
    if counts is None or missing == 0 or missing > MOST_FILLED * (len(ordered) + missing):
        raise InputError(
            f"{name}: expected slices at even distances, found {steps.min():.4g} to {steps.max():.4g} mm, the widest "
            f"between {between}; export a series with even distances"
        )
    if choice.gaps == "fill":
        planes: list[Frame | None] = [ordered[0]]
        for frame, count in zip(ordered[1:], counts, strict=True):
            planes += [None] * (count - 1) + [frame]
        return planes
    gaps, step = int((counts > 1).sum()), (places[-1] - places[0]) / counts.sum()
    raise InputError(
        f"{name}: expected slices at even distances of {step:.4g} mm, found {gaps} wider gap{'s' * (gaps > 1)}, up to "
        f"{steps.max():.4g} mm between {between}: {missing} slices are missing, or the distance changes within the "
        "series; fetch the series again, or have the gaps filled in between neighbours: --gaps fill"
    )


def _thickness(frame: Frame, name: str) -> float:
    """Millimetres that a single slice stands for: nothing but its thickness says it."""
    items: list[Any] = [item_of(one, "PixelMeasuresSequence", frame.name) for one in frame.group] or [frame.dataset]
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        for item in items:
            thickness = None if item is None else number_of(item, keyword)
            if thickness is not None and thickness > 0:
                return thickness
    raise InputError(f"{name}: expected {tag_of('SliceThickness')} of a scan of one slice, found none")


def _check_on_a_line(planes: Sequence[Frame | None], step: NDArray[np.float64], name: str) -> None:
    first = planes[0]
    assert first is not None, "a gap has two sides"
    for k, frame in enumerate(planes):
        if frame is None:
            continue
        off = frame.position - first.position - k * step
        sideways = float(np.abs(_in_pixels(off, first)).max())
        if sideways > _sideways_limit(first, step):
            raise InputError(
                f"{name}: expected slices on one straight line, found {frame.name} {np.linalg.norm(off):.3g} mm beside "
                "it: the table or the patient was moved within the series; choose a part that was not"
            )


def _sideways_limit(frame: Frame, step: NDArray[np.float64]) -> float:
    """How far, in pixels, a slice may lie beside the line; uneven distances along a leaning line move it there too."""
    across = step - (step @ frame.normal) * frame.normal
    return SIDEWAYS + 2 * UNEVEN * float(np.linalg.norm(across)) / min(frame.spacing)


def _placed(
    first: Frame, step: NDArray[np.float64], count: int, choice: SeriesChoice, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """The affine [4, 4] to LPS, and [k, 2] the shifts that straighten a tilt."""
    affine = np.eye(4)
    affine[:3, 0] = first.along_columns * first.spacing[1]
    affine[:3, 1] = first.along_rows * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    lean = _in_pixels(step, first)
    if np.abs(lean).max() * max(count - 1, 1) <= NO_TILT or count == 1:
        return affine, None
    if _angle(first, step) > STEEPEST:
        raise InputError(
            f"{name}: expected a gantry tilted by {STEEPEST:g} degrees at most, found {_angle(first, step):.2f}; the "
            "positions of the slices are wrong, or their orientations"
        )
    if choice.tilt == "refuse":
        raise InputError(
            f"{name}: expected slices that lie behind each other, found each moved sideways against the one before: "
            f"the gantry was tilted by {_angle(first, step):.2f} degrees; have the slices moved into place, within "
            "their planes: --tilt straighten"
        )
    shifts = np.outer(np.arange(count), lean)
    before = np.ceil(np.maximum(-shifts.min(axis=0), 0))
    affine[:3, 3] -= affine[:3, :2] @ before
    affine[:3, 2] = (step @ first.normal) * first.normal
    return affine, shifts + before


def _in_pixels(way: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """[2] how far a way [3] in LPS millimetres leads along columns and rows, in pixels."""
    return np.array([way @ frame.along_columns / frame.spacing[1], way @ frame.along_rows / frame.spacing[0]])


def _angle(frame: Frame, step: NDArray[np.float64]) -> float:
    """Degrees between the line of slices and their normal."""
    return float(np.degrees(np.arccos(np.clip(step @ frame.normal / np.linalg.norm(step), -1, 1))))
