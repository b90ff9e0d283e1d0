"""Defines every error that Voxtile raises on purpose.

VoxtileError                 exit code
├── InputError               2   a scan, a folder or an argument cannot be used
├── OutputError              2   a mask, report or preview cannot be written
│   └── DiskFullError        3   there is no room for it
├── ModelError               2   the server does not offer the model, or its card cannot be used
│   ├── NoCardError          2   an entry has no card: an engine behind a public name, or none of Voxtile's
│   └── OtherBuildError      2   the model was replaced by another build of it during a scan
├── ServerUnavailable        2   no server answers at the address
│   ├── NotLoadedError       2   the server loads models when asked, and has not loaded this one in time
│   ├── NoResponseError      3   the servers stopped answering during a scan
│   └── AccessError          2   the servers refuse access: a token is missing, wrong or out of date
├── MemoryLimitError         2   the scan cannot be segmented within the memory allowed
├── MissingExtraError        2   an optional dependency is not installed
├── ForkError                2   a connection was used in a process forked from the one that made it
└── TileError                3   a tile was refused on every try

Each message says what was expected, what was found, where, and what to do.
"""

import os
import traceback
from collections.abc import Callable, Iterable

LONGEST_LINE = 4000
"""Characters of a line at most: a quoted value may have any length, and each refused engine takes some 700."""


def shortened(text: str) -> str:
    """Returns `text` with the middle left out of each line that is too long: what to do comes last."""
    half = (LONGEST_LINE - 3) // 2
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}" for line in text.split("\n")
    )


class VoxtileError(Exception):
    """Base of all errors that are meant for the user; `exit_code` is the exit code of the commands."""

    exit_code = 2

    def __str__(self) -> str:
        return shortened(super().__str__())


class InputError(VoxtileError):
    """A scan, a folder or an argument cannot be used."""


class OutputError(VoxtileError):
    """A mask, report or preview cannot be written."""


class DiskFullError(OutputError):
    """There is no room for what is to be written: the disk, or this user's share of it, is full."""

    exit_code = 3


class ModelError(VoxtileError):
    """The server does not offer the model, or the model's card cannot be used."""


class NoCardError(ModelError):
    """An entry has no card: it is an engine behind a public name, or none of Voxtile's."""


class OtherBuildError(ModelError):
    """The model was replaced by another build of it during a scan."""


class ServerUnavailable(VoxtileError):
    """No server answers at the address given."""


class NotLoadedError(ServerUnavailable):
    """The server loads models when they are asked for, and has not loaded this one yet."""


class NoResponseError(ServerUnavailable):
    """The servers stopped answering during a scan."""

    exit_code = 3


class AccessError(ServerUnavailable):
    """The servers refuse access: a token is missing, wrong or out of date."""


class MemoryLimitError(VoxtileError):
    """The scan cannot be segmented within the memory allowed."""


class MissingExtraError(VoxtileError):
    """An optional dependency is not installed; the message names the pip command."""


class ForkError(VoxtileError):
    """A connection was used in a process that was forked from the one that made it."""


class TileError(VoxtileError):
    """A tile was refused on every try."""

    exit_code = 3


def in_one_line(error: BaseException) -> str:
    """Returns what an error says, in one line; of one that is not Voxtile's own, also its kind and its place."""
    said = " ".join(str(error).split())
    if isinstance(error, VoxtileError):
        return said
    place = next((f" (in {os.path.basename(f.filename)}, line {f.lineno})" for f in _innermost_first(error)), "")
    advice = "; allow less with --max-ram" if isinstance(error, MemoryError) else ""
    return shortened(f"{type(error).__name__}: {said or 'no more is known'}{advice}{place}")


def failures_of(writings: Iterable[Callable[[], None]]) -> list[str]:
    """Calls each; returns what those that failed said, so that none of them costs another."""
    failures = []
    for write in writings:
        try:
            write()
        except Exception as error:  # whatever it is, the main output is there
            failures.append(in_one_line(error))
    return failures


def _innermost_first(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__)[::-1]
