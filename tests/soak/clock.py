"""A calendar clock that jumps: what Voxtile's modules see as `time.time` is moved by what a file says.

gRPC and the kernel keep the true clock: a process whose every clock is moved by a preloaded library waits for ever,
because the kernel knows nothing of the move.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


class MovedTime:
    """The module `time`, with a calendar clock that is moved."""

    def __init__(self, clock: Path) -> None:
        self._clock = clock

    def time(self) -> float:
        return time.time() + float(self._clock.read_text())

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def move_clock_of_voxtile(clock: Path) -> None:
    """Gives the moved clock to all modules of Voxtile that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "voxtile" and getattr(module, "time", None) is time:
            module.time = MovedTime(clock)  # type: ignore[attr-defined]


def set_clock(clock: Path, seconds: float) -> None:
    """Moves the clock to `seconds` from the true one."""
    partial = clock.with_suffix(".partial")
    partial.write_text(str(seconds))
    os.replace(partial, clock)
