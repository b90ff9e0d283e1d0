"""Stages one after the other, each in a process of its own with its own limit of time; the JSON is whole at any moment.

A stage that fails, hangs, runs out of memory or takes its process down is told in one line, and the next one runs.
Knows nothing of what stages measure.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .settings import Known, Row, Settings, in_one_line

Measure = Callable[[Settings, Known], Iterator[Row]]
"""Yields rows; a function of a module, so that another process finds it."""
Result = dict[str, Any]
"""Of a run: `machine`, `device`, `tiny`, `minutes`, `seconds` and `stages`."""

PRELOADED = ["torch", "torch.utils.flop_counter", "monai.networks.nets", "bench.gpu.stages"]
"""What takes seconds to import is imported once, by the server that all stages are forked from."""
FEWEST_SECONDS = 5.0
"""Seconds with which a stage is still begun."""


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: in the data and on the command line.
        minutes: after which it is cut off.
        measure: yields its rows.
    """

    name: str
    minutes: float
    measure: Measure


def run_stages(stages: Sequence[Stage], settings: Settings, out: Path, minutes: float, about: Row) -> Result:
    """Runs stages in their order, as long as there is time, and keeps every row in `out` as soon as it is measured.

    Args:
        stages: the most valuable first.
        settings: of the run.
        out: the JSON file.
        minutes: for all stages together.
        about: what else the file says.

    Returns:
        What the file holds. Each stage has `rows`, `seconds`, and `ended`: "done", or in one line why not.
    """
    started = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    result: Result = {**about, "device": settings.device, "tiny": settings.tiny, "minutes": minutes, "stages": {}}
    for stage in stages:
        left = minutes * 60 - (time.monotonic() - started)
        told: Row = {"rows": [], "ended": "not begun: no time was left"}
        result["stages"][stage.name] = told
        if left >= min(FEWEST_SECONDS, stage.minutes * 60):
            begun = time.monotonic()
            for ended in _conduct(
                context, stage, settings, _known(result), min(stage.minutes * 60, left), told["rows"]
            ):
                told |= {"ended": ended, "seconds": round(time.monotonic() - begun, 1)}
                keep({**result, "seconds": round(time.monotonic() - started, 1)}, out)
        say(f"{time.monotonic() - started:.0f} s: {stage.name}: {len(told['rows'])} rows, {told['ended']}")
    result["seconds"] = round(time.monotonic() - started, 1)
    keep(result, out)
    return result


def keep(result: Result, out: Path) -> None:
    """Writes a run's JSON under another name and renames it: a reader never finds half of it."""
    partial = out.with_name(f"partial-{out.name}")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


def say(text: str) -> None:
    """Writes a line of progress to standard error."""
    sys.stderr.write(f"bench.gpu: {text}\n")
    sys.stderr.flush()


def _known(result: Result) -> Known:
    return {name: stage["rows"] for name, stage in result["stages"].items()}


def _conduct(
    context: Any, stage: Stage, settings: Settings, known: Known, seconds: float, rows: list[Row]
) -> Iterator[str]:
    """Runs one stage in a process; appends its rows. Yields after each row, and at the end, how the stage stands."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(stage.measure, settings, known, sender), daemon=True)
    process.start()  # waits for the server, which imports
    sender.close()
    deadline = time.monotonic() + seconds
    try:
        while True:
            yield (ended := _next(receiver, deadline, seconds, rows)) or "running"
            if ended is not None:
                break
    finally:
        _end(process)
    if ended == DIED:
        yield f"the process ended with {process.exitcode}"


DIED = "the process ended"


def _next(receiver: Connection, deadline: float, seconds: float, rows: list[Row]) -> str | None:
    """Waits for the next row; returns how the stage ended if there is none."""
    if not receiver.poll(max(deadline - time.monotonic(), 0)):
        return f"cut off after {seconds:.0f} s"
    try:
        kind, content = receiver.recv()
    except EOFError:
        return DIED
    if kind == "row":
        rows.append(content)
        return None
    return str(content)


def _work(measure: Measure, settings: Settings, known: Known, sender: Connection) -> None:
    """Runs in the process."""
    os.setsid()  # so that compilers that it starts end with it
    try:
        for row in measure(settings, known):
            sender.send(("row", row))
        sender.send(("end", "done"))
    except Exception as error:  # of any library
        sender.send(("end", f"failed: {in_one_line(error)}"))


def _end(process: Any) -> None:
    """Ends a process with everything that it has started."""
    process.join(0.5)
    # One that has not yet a group of its own is ended alone.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
