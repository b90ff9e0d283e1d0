"""What must hold at the end of the soak. Knows nothing of how the soak is run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_MAY_GROW = 1.1
MEMORY_SPARE = 16 << 20
"""Memory in the last quarter may be so many times that of the second quarter, and so many bytes more: what pools and
fragmentation still gain. A leak of one tile's memory for each scan would exceed it within a hundred scans."""

FILES_MAY_GROW = 8
"""Open files in the last quarter may be so many more than in the second: connections that wait for a server."""


@dataclass(frozen=True)
class Check:
    """A line of the soak's table.

    Attributes:
        what: what was looked at.
        found: what was found, in words.
        expected: what was expected, in words.
        held: whether it is right.
    """

    what: str
    found: str
    expected: str
    held: bool


def none(what: str, found: Sequence[Any]) -> Check:
    """A check that there is nothing of a kind."""
    shown = ", ".join(map(str, found[:3])) + (" …" if len(found) > 3 else "")
    return Check(what, f"{len(found)}" + (f": {shown}" if found else ""), "0", not found)


def at_least(what: str, found: int, least: int) -> Check:
    """A check that enough has happened for the soak to mean something."""
    return Check(what, str(found), f"{least} or more", found >= least)


def not_growing(
    what: str, values: Sequence[float], factor: float, spare: float, unit: float = 1, name: str = ""
) -> Check:
    """A check that values do not rise: the last quarter's median against the second quarter's."""
    quarter = len(values) // 4
    if quarter < 2:
        return Check(what, f"{len(values)} values", "8 or more", False)
    early, late = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
    limit = early * factor + spare
    return Check(
        what, f"{early / unit:.0f} then {late / unit:.0f}{name}", f"at most {limit / unit:.0f}{name}", late <= limit
    )


def table(checks: Sequence[Check]) -> str:
    """Returns the checks as a table of plain text."""
    rows = [
        ("", "what", "found", "expected"),
        *(("ok" if one.held else "NO", one.what, one.found, one.expected) for one in checks),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def left_in(folder: Path, *patterns: str) -> list[str]:
    """Returns the names of what lies in a folder."""
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))
