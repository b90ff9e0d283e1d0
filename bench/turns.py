"""Repetitions that take turns, of functions or of ways in processes of their own. Knows nothing of what they do.

With a process for each way, peak memory is told apart, and repetitions take turns without loading anything twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .engines import Job, Way
from .memory import forget_peak, peak_rss_bytes, status_bytes
from .settings import Settings

Result = TypeVar("Result")
Key = TypeVar("Key")

SPAWN = multiprocessing.get_context("spawn")
"""Not fork: the child would begin with the memory of this process."""

Make = Callable[[Job], Way]
"""Makes a way ready; a function of a module, so that another process finds it."""
Start = Callable[[], "Future[dict[str, Any]]"]
"""Starts a run."""
Runs = dict[str, list[dict[str, Any]]]
"""What each way measured, run by run."""


def interleave(
    ways: Mapping[Key, Callable[[], Result]],
    repetitions: int,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> dict[Key, list[Result]]:
    """Calls every way once, then every way again in the opposite order, and so on: a drift affects all ways alike.

    The first round always runs. A later one starts only if the longest round so far still fits into `budget_s` seconds.
    """
    results: dict[Key, list[Result]] = {name: [] for name in ways}
    started, longest = clock(), 0.0
    for number in range(repetitions):
        start = clock()
        if number and start - started + longest > budget_s:
            break
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            results[name].append(ways[name]())
        longest = max(longest, clock() - start)
    return results


def take_turns(
    jobs: Mapping[str, tuple[Make, Job]],
    settings: Settings,
    where: str,
    budget_s: float,
    around: Mapping[str, Callable[[Start], dict[str, Any]]] | None = None,
) -> Runs:
    """Runs jobs in turns, each in a process of its own. What fails once is left out whole.

    Args:
        jobs: by the name of their row. Nothing is run without the first one, which the others are compared with.
        settings: say how often; record what is left out.
        where: the table, for those records.
        budget_s: seconds for the repetitions of a full run.
        around: what starts a row's run and awaits it in place of this function, to measure more.

    Returns:
        For each row what the way measured, with `peak_rss_bytes` and `idle_rss_bytes` of its process.
    """
    failed: set[str] = set()

    def guarded(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        if name in failed:
            return None
        try:
            return work()
        except Exception as error:  # of any library, and of a process that was killed
            failed.add(name)
            settings.leave_out(where, name, f"{type(error).__name__}: {error}")
            return None

    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[], dict[str, Any] | None]] = {}
        for name, (make, job) in jobs.items():
            process = stack.enter_context(ProcessPoolExecutor(1, SPAWN))
            log = settings.work / f"{file_name(f'{where} {name}')}.log"
            guarded(name, process.submit(_start, make, job, log).result)
            start = partial(process.submit, _run)
            ways[name] = partial(guarded, name, partial((around or {}).get(name, _result), start))
        if next(iter(jobs)) in failed:
            return {}
        runs = interleave(ways, settings.repetitions, settings.budget_s(budget_s))
    return {name: [run for run in some if run] for name, some in runs.items() if name not in failed}


def file_name(text: str) -> str:
    """Returns a text with everything that a file's name should not have made "-"."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _result(start: Start) -> dict[str, Any]:
    return start().result()


_ready: dict[str, Any] = {}
"""In the process: the way, and the memory before its first run."""


def _start(make: Make, job: Job, log: Path) -> dict[str, Any]:
    """Runs in the process. What libraries print goes to the log."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    _ready["way"] = make(job)
    forget_peak()  # what loading took is not what a scan takes
    _ready["idle"] = status_bytes("VmRSS")
    return {}


def _run() -> dict[str, Any]:
    measured = _ready["way"]()
    return {"peak_rss_bytes": peak_rss_bytes(), "idle_rss_bytes": _ready["idle"], **measured}
