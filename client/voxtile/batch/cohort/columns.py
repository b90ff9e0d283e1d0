"""Finds out which column of a manifest is what: the case, a channel, its output, its options.

Knows nothing of rows or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from voxtile.errors import InputError
from voxtile.io.bids import contrast_of

CASE, OUTPUT, OPTIONS = "case", "output", "options"
WHOLE = "image"
"""The column of scans that have all channels in one file."""

NUMBERED = re.compile(r"(?:channel_?)?(\d{1,4})", re.ASCII)
"""A channel by nnU-Net's number."""


@dataclass(frozen=True)
class Columns:
    """The place of each column.

    Attributes:
        case: that of the case's name.
        files: those of its files, in the order of the model's channels; one for scans with all channels in one file.
        output: that of its mask's name; None without one.
        options: that of its options; None without one.
    """

    case: int
    files: tuple[int, ...]
    output: int | None
    options: int | None

    @property
    def are_files(self) -> tuple[bool, ...]:
        """Whether each column names files, as far as the last that does."""
        return tuple(place in self.files for place in range(max(self.files) + 1))


def columns_of(head: Sequence[str], channels: Sequence[str]) -> Columns:
    """The columns that the first row of a manifest names.

    A channel's column has the channel's name, its nnU-Net number as in `channel_0001`, or a BIDS suffix that means it.

    Args:
        head: the cells of the first row.
        channels: the model's channels, by name.

    Raises:
        InputError: a column is missing, unknown, or there twice.
    """
    found: dict[str | int, int] = {}
    for place, name in enumerate(head):
        what = _what(name, channels)
        if what is None:
            said = repr(name) if name else f"one without a name (number {place + 1})"
            raise InputError(
                f"expected the columns {_wanted(channels)}, found an unknown one: {said}; remove or rename it"
            )
        if what in found:
            raise InputError(
                f"expected each column once, found two that mean the same: {head[found[what]]!r}, {name!r}"
            )
        found[what] = place
    files = _files(found, channels)
    if CASE not in found or files is None:
        missing = [CASE] if CASE not in found else []
        missing += [one for number, one in enumerate(channels) if files is None and number not in found]
        raise InputError(
            f"expected the columns {_wanted(channels)}, found {', '.join(map(repr, head))}; add {', '.join(missing)}"
        )
    return Columns(found[CASE], files, found.get(OUTPUT), found.get(OPTIONS))


def _files(found: dict[str | int, int], channels: Sequence[str]) -> tuple[int, ...] | None:
    """The places of the columns of files; None where they are not those of all channels."""
    named = [number for number in range(len(channels)) if number in found]
    if WHOLE in found:
        if named:
            raise InputError(f"expected a column {WHOLE!r}, or one for each channel, found both; keep one of them")
        return (found[WHOLE],)
    return tuple(found[number] for number in named) if len(named) == len(channels) else None


def _what(name: str, channels: Sequence[str]) -> str | int | None:
    """The meaning of a column: a word, or the number of a channel; None where it has none."""
    folded = name.casefold()
    if folded in (CASE, OUTPUT, OPTIONS):
        return folded
    for same in (str, str.casefold, contrast_of):
        alike = [number for number, channel in enumerate(channels) if same(channel) == same(name) and same(name)]
        if len(alike) == 1:
            return alike[0]
    number = NUMBERED.fullmatch(folded)
    if number and int(number[1]) < len(channels):
        return int(number[1])
    return WHOLE if folded == WHOLE else None


def _wanted(channels: Sequence[str]) -> str:
    files = f"{', '.join(channels)} (or {WHOLE}, with all channels in one file)"
    return f"{CASE}, {files}, and perhaps {OUTPUT} and {OPTIONS}"
