"""Shows how far work is and how long it will still take: a bar on a terminal, now and then a line where there is none.

Knows nothing of what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int], None]
"""Called as report(done, total) whenever a part of the work is done."""

FIRST_LINE_S = 20.0
"""Work that takes less than this writes nothing into a pipe: where it fails, the error is then the only line."""

NEXT_LINE_S = 30.0
"""Between two lines in a pipe; a log of an hour's work stays readable."""


def ignore(_done: int, _total: int) -> None:
    """Takes reports that nobody wants to see."""


@contextmanager
def bar(what: str, console: Console, *, percent: bool = False) -> Iterator[Report]:
    """Shows a bar on a terminal; it only moves to and fro until the first report says what there is to do.

    Args:
        what: the work.
        console: the terminal.
        percent: reports count hundredths, not things.
    """
    count: Any = TaskProgressColumn() if percent else MofNCompleteColumn()
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), count]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            with suppress(OSError):  # a terminal that was closed
                shown.update(task, completed=done, total=total)

        yield show


@contextmanager
def lines(what: str, write: Callable[[str], None], already: float = 0.0, *, percent: bool = False) -> Iterator[Report]:
    """Writes how far the work is, first after FIRST_LINE_S and then every NEXT_LINE_S, for as long as the block lasts.

    Args:
        what: the work.
        write: writes one line; it is called on a thread.
        already: seconds that earlier parts of the same work took; they count towards the first line.
        percent: reports count hundredths, not things.
    """
    state, ended = _State(what, percent), threading.Event()

    def speak() -> None:
        wait = max(FIRST_LINE_S - already, 0.0)
        while not ended.wait(wait):
            write(state.line(time.monotonic()))
            wait = NEXT_LINE_S

    speaker = threading.Thread(target=speak, name="progress", daemon=True)
    speaker.start()
    try:
        yield state.report
    finally:
        ended.set()
        speaker.join()


class _State:
    """How far one piece of work is."""

    def __init__(self, what: str, percent: bool = False) -> None:
        self._what, self._percent, self._started = what, percent, time.monotonic()
        self._counted_from: tuple[float, int] | None = None
        self._done, self._total = 0, 0

    def report(self, done: int, total: int) -> None:
        if self._counted_from is None:
            # What was done before the first report, such as opening a model, says nothing of the rest.
            self._counted_from = time.monotonic(), done
        self._done, self._total = done, total

    def line(self, now: float) -> str:
        """The state at `now`, in words."""
        spent = f"{duration(now - self._started)} so far"
        if self._counted_from is None:
            return f"{self._what}: {spent}"
        since, before = self._counted_from
        counted = self._done - before
        left = (now - since) / counted * (self._total - self._done) if counted else None
        about = "" if left is None else f", about {duration(left)} left"
        far = f"{self._done}%" if self._percent else f"{self._done} of {self._total}"
        return f"{self._what}: {far}, {spent}{about}"


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
