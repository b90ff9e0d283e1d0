"""Chooses the stack that a scan is among those of a folder, by what is said of it, and tells what was left out and why.

Knows nothing of files or pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.objects.headers import tag_of
from voxtile.io.dicom.stacks import Stack

SCOUT = 5
"""A stack of so many slices across a larger one of its series is no scan: scanners put overviews there."""

ACROSS = 0.87
"""The cosine between normals below which slices lie across others: 30 degrees."""

MOST_LISTED = 12
"""Stacks that a message lists."""


def chosen_stack(stacks: Sequence[Stack], choice: SeriesChoice, name: str) -> tuple[Stack, list[str]]:
    """Returns the stack that is wanted, and what was left out, in words that name nobody.

    Args:
        stacks: the stacks of a folder; at least one.
        choice: what is said of the one wanted; its `series` names one at most.
        name: what messages call the folder.

    Raises:
        InputError: none fits, or several do; they are listed with what `--series` takes for each.
    """
    fitting = [stack for stack in stacks if _fits(stack, choice)]
    if not fitting:
        raise InputError(f"{name}: expected {_asked(choice)}, found none among {listed(stacks)}")
    wanted = _without(fitting, [stack for stack in fitting if stack.kind == "localizer" or _is_scout(stack, stacks)])
    _check_one(wanted, name)
    originals = _without(wanted, [stack for stack in wanted if stack.kind == "derived"])
    best = max(originals, key=_length)
    rivals = [
        stack for stack in originals if stack is not best and (_length(stack) == _length(best) or _is_part(stack, best))
    ]
    if _length(best) <= SCOUT:  # what was made from it may be the scan, and it no more than a picture
        rivals += [stack for stack in wanted if stack not in originals and _length(stack) > _length(best)]
    if rivals:
        proposed = max((*rivals, best), key=_length)
        raise InputError(
            f"{name}: expected one series, found several that could be meant: {listed([best, *rivals])}; say which: "
            f"--series {proposed.place}"
        )
    others = [stack for stack in stacks if stack is not best]
    if not others:
        return best, []
    return best, [
        f"of {len(stacks)} series, {best.in_words} is taken, {_why(best, fitting, stacks)}; left out: {listed(others)}"
    ]


def _check_one(stacks: Sequence[Stack], name: str) -> None:
    """Refuses scans of several patients, or of several examinations: the longest of them is nobody's guess.

    Raises:
        InputError: `stacks` are of several.
    """
    for what, keywords, found in (
        ("patient", ("PatientID", "PatientName"), {stack.patient for stack in stacks}),
        ("study", ("StudyInstanceUID",), {(stack.study,) for stack in stacks} - {("",)}),
    ):
        if len(found) > 1:
            differ = [tag_of(one) for one, values in zip(keywords, zip(*found, strict=True), strict=True)
                      if len(set(values)) > 1]  # fmt: skip
            raise InputError(
                f"{name}: expected the scans of one {what}, found {len(found)} ({' and '.join(differ)}): "
                f"{listed(stacks)}; give the folder of one, or say which series: --series "
                f"{max(stacks, key=_length).place}"
            )


def _length(stack: Stack) -> int:
    return len(stack.frames)


def _is_part(stack: Stack, best: Stack) -> bool:
    """Whether a stack is of the same series: what tells it from the other may be an error in the objects."""
    unnamed = "" in (stack.uid, best.uid)
    return stack.uid == best.uid or (unnamed and stack.series_number == best.series_number)


def _why(best: Stack, fitting: Sequence[Stack], stacks: Sequence[Stack]) -> str:
    """Why a stack is taken."""
    if len(fitting) == 1 < len(stacks):
        return "as asked for"
    if _length(best) == max(map(_length, fitting)):
        return "which has the most slices"
    return "which has the most slices of those that are neither localizers nor derived"


def listed(stacks: Sequence[Stack]) -> str:
    """Stacks in words that name nobody; of very many, the first."""
    words = [stack.in_words for stack in stacks[:MOST_LISTED]]
    more = len(stacks) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _fits(stack: Stack, choice: SeriesChoice) -> bool:
    if choice.series and not _is_named(stack, choice.series[0]):
        return False
    if choice.modality and stack.modality != choice.modality.strip().upper():
        return False
    return not choice.description or fnmatchcase(stack.description.lower(), choice.description.lower())


def _is_named(stack: Stack, series: str) -> bool:
    """Whether a stack is what `--series` says: a number or a UID, and after a colon the stack in it."""
    named, _, number = series.strip().partition(":")
    if number and number != str(stack.number):
        return False
    return bool(named) and named in (stack.uid, stack.series_number, stack.told_number)


def _is_scout(stack: Stack, stacks: Iterable[Stack]) -> bool:
    """Whether a stack is a few slices that lie across the largest of its series."""
    largest = max((one for one in stacks if _is_part(one, stack)), key=_length)
    cosine = abs(float(stack.frames[0].normal @ largest.frames[0].normal))
    return _length(stack) <= SCOUT < _length(largest) and cosine < ACROSS


def _without(stacks: Sequence[Stack], others: Sequence[Stack]) -> list[Stack]:
    """Stacks without others, unless these are all."""
    kept = [stack for stack in stacks if stack not in others]
    return kept or list(stacks)


def _asked(choice: SeriesChoice) -> str:
    """What is said of the series that is wanted, in words; of a description, only that it counts."""
    said = [f"series {choice.series[0][:70]}"] if choice.series else ["a series"]
    said += [f"of the modality {choice.modality}"] if choice.modality else []
    return " ".join(said + (["whose description is as asked for"] if choice.description else []))
