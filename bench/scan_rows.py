"""scans.json: every way to segment each workload's scan, repetitions taking turns, against the first way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray

from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

from .masks import changed_fraction, dice_min, only, single_path
from .settings import Settings, say
from .timing import interleave, ratio, spread
from .ways import forget_peak, peak_rss_bytes, shared_bytes
from .worker import Worker, WorkerError
from .workloads import OWN_PREDICTOR, Row, Workload, workloads

Runs = list[dict[str, Any]]

WATCH_S = 0.05
"""Between two looks at what tritonserver shares."""


def measure_scans(section: str, settings: Settings) -> list[dict[str, Any]]:
    """The rows of all workloads of a section."""
    rows: list[dict[str, Any]] = []
    for workload in workloads(section, settings):
        rows += measure(workload, settings)
    return rows


def measure(workload: Workload, settings: Settings) -> list[dict[str, Any]]:
    """One workload: a process for each row, and a server where it needs one, then the repetitions.

    Rows do not share a server: what one of them left in its memory would count for the others.
    """
    say(f"{workload.name}: {workload.title}")
    with contextlib.ExitStack() as stack:
        servers = {
            row.name: stack.enter_context(serving([row.entry.name], settings))
            for row in workload.rows
            if row.entry is not None
        }
        workers = _workers(workload, servers, stack, settings)
        if workload.rows[0].name not in workers:
            return table(workload, {}, settings)
        runs = _without_failures(
            interleave(
                _guarded(workers, workload, servers, settings),
                settings.repetitions,
                settings.budget_s(workload.budget_s),
            )
        )
    return table(workload, runs, settings)


def serving(names: Sequence[str], settings: Settings) -> EmbeddedServer:
    """The embedded server with these entries of the benchmark's repository and no others."""
    return EmbeddedServer(
        settings.repository,
        ServerOptions(
            model_control_mode="explicit",
            load_models=tuple(sorted(set(names))),
            log_file=settings.work / "server.log",
        ),
    )


def table(workload: Workload, runs: Mapping[str, Runs], settings: Settings) -> list[dict[str, Any]]:
    """The rows of what was run, ratios and masks against the first row; none where that one failed."""
    first = workload.rows[0].name
    if first not in runs:
        settings.leave_out(workload.name, "every row", f"there is nothing to compare with: {first!r} failed")
        return []
    baseline = spread([run["seconds"] for run in runs[first]]).median
    whole = mask_path(workload, first, settings)
    reference = _mask(whole)
    single = _mask(single_path(whole)) if single_path(whole).exists() else None
    own = _mask(mask_path(workload, OWN_PREDICTOR, settings)) if OWN_PREDICTOR in runs else None
    return [
        {
            "workload": workload.name,
            "title": workload.title,
            "row": row.name,
            **_times(runs[row.name], baseline),
            # Whatever a way needs: a served one its server too.
            "peak_rss_bytes": max(run["peak_rss_bytes"] + run["server_rss_bytes"] for run in runs[row.name]),
            "client_rss_bytes": max(run["peak_rss_bytes"] for run in runs[row.name]),
            **_agreement(
                only(reference, row.label) if row.label is None or single is None else single,
                own,
                _mask(mask_path(workload, row.name, settings)),
                row.label,
            ),
        }
        for row in workload.rows
        if row.name in runs
    ]


def mask_path(workload: Workload, row: str, settings: Settings) -> Path:
    """Where a row's mask lies."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in f"{workload.name} {row}")
    return settings.work / f"{plain}.nii.gz"


def _workers(
    workload: Workload, servers: Mapping[str, EmbeddedServer], stack: contextlib.ExitStack, settings: Settings
) -> dict[str, Worker]:
    """A ready process for each row; one that cannot be made ready is left out, and the reason told."""
    workers: dict[str, Worker] = {}
    for row in workload.rows:
        job = {**row.job, "mask": str(mask_path(workload, row.name, settings))}
        if row.name in servers:
            job["url"] = servers[row.name].grpc_url
        log = mask_path(workload, row.name, settings).with_suffix(".log")
        try:
            workers[row.name] = stack.enter_context(Worker(job, log, row.environment))
        except WorkerError as error:
            settings.leave_out(workload.name, row.name, str(error))
    return workers


def _guarded(
    workers: Mapping[str, Worker], workload: Workload, servers: Mapping[str, EmbeddedServer], settings: Settings
) -> dict[str, Callable[[], dict[str, Any] | None]]:
    """Each row as a function; one that fails is told once and gives None from then on."""
    failed: set[str] = set()
    behind = {row.name: Behind(row, servers[row.name].pid if row.name in servers else None) for row in workload.rows}

    def run(name: str) -> dict[str, Any] | None:
        if name in failed:
            return None
        try:
            with behind[name].watched():
                told = workers[name]()
            return {**told, "server_rss_bytes": behind[name].peak_bytes()}
        except WorkerError as error:
            failed.add(name)
            settings.leave_out(workload.name, name, str(error))
            return None

    return {name: partial(run, name) for name in workers}


def _without_failures(runs: Mapping[str, list[dict[str, Any] | None]]) -> dict[str, Runs]:
    """Rows that failed in any repetition are left out whole."""
    return {name: [run for run in some if run] for name, some in runs.items() if all(some)}


def _times(runs: Runs, baseline: float) -> dict[str, Any]:
    """Median, spread and ratio; overhead: wall clock over the engine's own compute, of the median run."""
    told = spread([run["seconds"] for run in runs])
    engine = spread([run["engine_seconds"] for run in runs]).median
    return {
        "seconds": round(told.median, 4),
        "ratio": round(ratio(baseline, told.median), 3),
        "seconds_low": round(told.low, 4),
        "seconds_high": round(told.high, 4),
        "runs": told.runs,
        "engine_seconds": round(engine, 4),
        "overhead": round(told.median / engine, 3) if engine else None,
        "tiles": runs[-1]["tiles"],
        "skipped_tiles": runs[-1].get("skipped_tiles", 0),
        **({"steps": runs[-1]["steps"]} if "steps" in runs[-1] else {}),
    }


def _agreement(
    expected: NDArray[Any], own: NDArray[Any] | None, found: NDArray[Any], label: int | None
) -> dict[str, Any]:
    """Against the first row's mask; of a single mask against that class alone. own: nnU-Net's, if it took part."""
    there = only(found, label)
    told = {"dice_min": _dice(expected, there), "changed_fraction": _flips(expected, there), "compared_label": label}
    if own is None:
        return told
    return {**told, "dice_min_to_nnunet": _dice(own, found), "changed_to_nnunet": _flips(own, found)}


def _dice(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return round(dice_min(expected, found), 5)


def _flips(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(f"{changed_fraction(expected, found):.4g}")


def _mask(path: Path) -> NDArray[Any]:
    return np.asanyarray(nib.load(path).dataobj)


class Behind:
    """The processes behind a served row: tritonserver, and those that run the row's engine; none behind any other."""

    def __init__(self, row: Row, server: int | None) -> None:
        self._server = server
        self._engines: list[int] = []
        self._shared = 0
        if server is not None and row.entry is not None:
            mark = f"{row.entry.engine_entry}_0_"
            children = psutil.Process(server).children(recursive=True)
            self._engines = [child.pid for child in children if any(word.startswith(mark) for word in child.cmdline())]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Peaks count from here to the end of the context."""
        if self._server is None:
            yield
            return
        for pid in (self._server, *self._engines):
            forget_peak(pid)
        self._shared = 0
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(self._server, done))
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def peak_bytes(self) -> int:
        """The peaks in that time, added up. What tritonserver shares is counted in whom it is shared with."""
        own = 0 if self._server is None else peak_rss_bytes(self._server) - self._shared
        return own + sum(map(peak_rss_bytes, self._engines))

    def _watch(self, server: int, done: threading.Event) -> None:
        """The most that tritonserver shares: what a client shares with it is gone before the client is done."""
        while True:
            self._shared = max(self._shared, shared_bytes(server))
            if done.wait(WATCH_S):
                return
