"""Chooses the stack that a scan is among those of a folder, by what is said of it, and tells what was left out and why.

Knows nothing of files or pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.stacks import NO_NUMBER, Stack

SCOUT = 5
"""A stack of so many slices beside a larger one of its series is no scan: scanners put overviews there."""

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
    wanted = _without(fitting, [stack for stack in fitting if stack.kind == "localizer"])
    wanted = _without(wanted, [stack for stack in wanted if stack.kind == "derived"])
    wanted = _without(wanted, [stack for stack in wanted if _is_scout(stack, stacks)])
    wanted.sort(key=lambda stack: -len(stack.frames))
    best = wanted[0]
    rivals = [stack for stack in wanted[1:] if len(stack.frames) == len(best.frames) or stack.uid == best.uid]
    if rivals:
        raise InputError(
            f"{name}: expected one series, found several that could be meant: {listed([best, *rivals])}; say which: "
            f"--series {rivals[0].place}"
        )
    others = [stack for stack in stacks if stack is not best]
    if not others:
        return best, []
    why = "as asked for" if len(fitting) == 1 and fitting != list(stacks) else "which has the most slices"
    return best, [f"of {len(stacks)} series, {best.in_words} is taken, {why}; left out: {listed(others)}"]


def listed(stacks: Sequence[Stack]) -> str:
    """Stacks in words that name nobody; of very many, the first."""
    words = [stack.in_words for stack in stacks[:MOST_LISTED]]
    more = len(stacks) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _fits(stack: Stack, choice: SeriesChoice) -> bool:
    if choice.series and not _is_named(stack, choice.series[0]):
        return False
    if choice.modality and stack.modality.upper() != choice.modality.upper():
        return False
    return not choice.description or fnmatchcase(stack.description.lower(), choice.description.lower())


def _is_named(stack: Stack, series: str) -> bool:
    """Whether a stack is what `--series` says: a number or a UID, and after a colon the stack in it."""
    named, _, number = series.strip().partition(":")
    if number and number != str(stack.number):
        return False
    return named in (stack.uid, stack.series_number or NO_NUMBER)


def _is_scout(stack: Stack, stacks: Iterable[Stack]) -> bool:
    largest = max(len(one.frames) for one in stacks if one.uid == stack.uid)
    return len(stack.frames) <= SCOUT < largest


def _without(stacks: Sequence[Stack], others: Sequence[Stack]) -> list[Stack]:
    """Stacks without others, unless these are all."""
    kept = [stack for stack in stacks if stack not in others]
    return kept or list(stacks)


def _asked(choice: SeriesChoice) -> str:
    """What is said of the series that is wanted, in words; of a description, only that it counts."""
    said = [f"series {choice.series[0][:70]}"] if choice.series else ["a series"]
    said += [f"of the modality {choice.modality}"] if choice.modality else []
    return " ".join(said + (["whose description is as asked for"] if choice.description else []))
