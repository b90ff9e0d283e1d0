"""Reads spans of time and rates as people write them: `30s`, `2min`, `60/h`. Knows nothing of what they are for."""

from __future__ import annotations

import math
import re

from voxtile.errors import InputError

SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
SPAN = re.compile(rf"{NUMBER}\s*(ms|s|min|h)")
RATE = re.compile(rf"{NUMBER}\s*/\s*(s|min|h)")
LONGEST_S = 7 * 24 * 3600.0
"""A week: what is longer, or comes more seldom, is a slip of the pen."""


def seconds_of(text: str, option: str) -> float:
    """Returns a span of time in seconds.

    Args:
        text: a number and its unit: ms, s, min or h.
        option: what gave it, for the error.

    Raises:
        InputError: it is none, is 0, or is longer than a week.
    """
    found = SPAN.fullmatch(text.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else math.nan
    if not 0 < seconds <= LONGEST_S:
        raise InputError(f"{option}: expected a time above 0 with ms, s, min or h, such as 30s, found {text!r}")
    return seconds


def rate_of(text: str, option: str) -> float:
    """Returns a rate in scans a second.

    Args:
        text: a number of scans, a slash and s, min or h, such as 60/h.
        option: what gave it, for the error.

    Raises:
        InputError: it is none, is less than one in a week, or more than a thousand in a second.
    """
    found = RATE.fullmatch(text.strip())
    rate = float(found[1]) / SECONDS[found[2]] if found else math.nan
    if not 1 / LONGEST_S <= rate <= 1000:
        raise InputError(f"{option}: expected scans a time, such as 60/h, 2/min or 0.5/s, found {text!r}")
    return rate


def in_words(seconds: float) -> str:
    """Returns seconds with three figures: `0.0123 s`, `12.3 s`, `1,230 s`."""
    return f"{round(seconds):,} s" if seconds >= 1000 else f"{seconds:.3g} s"
