"""Looks for the highest load that is held: twice as much until one is not, then between the two.

Knows nothing of what a load is.
"""

from __future__ import annotations

import math
from collections.abc import Generator

CLOSE = 1.1
"""The search ends where the load that is not held is at most so many times the one that is; the same load, measured
twice, differs by about as much."""


def levels(first: float, most: float, *, whole: bool) -> Generator[float, bool, None]:
    """Yields levels of load; each is answered, by `send`, with whether it was held.

    Args:
        first: where to begin.
        most: where to end, although it is held.
        whole: levels are whole numbers.
    """
    held, level = 0.0, first
    while (yield level):
        if level >= most:
            return
        held, level = level, min(2 * level, most)
    while held and not _close(held, level, whole):
        middle = (held + level) // 2 if whole else math.sqrt(held * level)
        if (yield middle):
            held = middle
        else:
            level = middle


def _close(held: float, lost: float, whole: bool) -> bool:
    return lost <= held * CLOSE or (whole and lost - held <= 1)
