"""Checks that a stack is all of its series, as far as its objects or the files beside it say so."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path

from voxtile.errors import InputError
from voxtile.io.dicom.grid import at_one_place
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.frames import Frame, frames_of
from voxtile.io.dicom.objects.headers import number_of, read_header, tag_of, text_of
from voxtile.io.dicom.objects.strangers import stranger_of
from voxtile.io.dicom.stacks import Stack, stacks_of, without_copies


def check_whole(stack: Stack, name: str) -> None:
    """Refuses a part of what was cut into several objects (a concatenation).

    Raises:
        InputError: an object says that it is one of several, and not all are there.
    """
    parts: dict[str, set[float]] = defaultdict(set)
    totals: dict[str, float] = defaultdict(float)
    for dataset in {id(frame.dataset): frame.dataset for frame in stack.frames}.values():
        uid, number = text_of(dataset, "ConcatenationUID"), number_of(dataset, "InConcatenationNumber")
        if uid and number is not None:
            parts[uid].add(number)
            totals[uid] = max(totals[uid], number, number_of(dataset, "InConcatenationTotalNumber") or 0)
    for uid, there in parts.items():
        if len(there) < totals[uid]:
            raise InputError(
                f"{name}: expected {totals[uid]:.0f} objects, as {tag_of('InConcatenationTotalNumber')} or "
                f"{tag_of('InConcatenationNumber')} says, found {len(there)}; give their folder, or fetch the series "
                "again"
            )


def check_alone(place: Path, stack: Stack, name: str) -> None:
    """Refuses one object of a series that was named in place of the series.

    Args:
        place: the file.
        stack: the frames of it that are the scan.
        name: what messages call it.

    Raises:
        InputError: with the other files of its folder, the scan would have more slices.
    """
    own = set(map(id, stack.frames))
    if stack.frames[0].file.path is None:
        return  # an archive is whole in itself
    frames = list(stack.frames)
    for other in sorted(place.parent.iterdir()):
        if other == place or not other.is_file():
            continue
        with contextlib.suppress(InputError):
            frames += _frames_of_series(File(str(other), path=other), stack.uid)
    for together in stacks_of(without_copies(frames)[0]):
        more = len(together.frames) - len(stack.frames)
        if not own & set(map(id, together.frames)) or (len(own) > 1 and at_one_place(together.frames)):
            continue  # another scan
        if more > 0:
            raise InputError(
                f"{name}: expected all slices of a series, found {len(stack.frames)} of them, with {more} more beside "
                f"it; give their folder, {place.parent}"
            )


def _frames_of_series(file: File, series: str) -> list[Frame]:
    if stranger_of(file) is not None:
        return []
    header = read_header(file)
    return list(frames_of(header, file)) if text_of(header, "SeriesInstanceUID") == series else []
