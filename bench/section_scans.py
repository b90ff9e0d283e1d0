"""scans.json: every way to segment each workload's scan, compared with the first way."""

from __future__ import annotations

import contextlib
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

from .entries import Entry
from .figures import Rows, agreement, only, spread
from .memory import forget_peak, peak_rss_bytes, status_bytes
from .settings import Settings, say
from .turns import Runs, Start, file_name, take_turns
from .ways import single_path
from .workloads import OWN_PREDICTOR, Workload, workloads

WATCH_S = 0.05  # between two looks at what tritonserver shares


def measure(section: str, settings: Settings) -> Rows:
    """Returns the rows of all workloads of a section."""
    return [row for workload in workloads(section, settings) for row in measure_workload(workload, settings)]


def measure_workload(workload: Workload, settings: Settings) -> Rows:
    """Runs one workload: a process for each row, and a server for each row that needs one.

    Rows do not share a server: what one of them left in its memory would count for the others.
    """
    say(f"{workload.name}: {workload.title}")
    jobs, around = {}, {}
    with contextlib.ExitStack() as stack:
        for row in workload.rows:
            job = {**row.job, "mask": mask_path(workload, row.name, settings)}
            if row.entry is not None:
                server = stack.enter_context(serving(row.entry, settings))
                job |= {"url": server.grpc_url, "name": row.entry.name}
                around[row.name] = partial(_served, row.entry, Behind(row.entry, server.pid), server.grpc_url)
            jobs[row.name] = (row.make, job)
        runs = take_turns(jobs, settings, workload.name, workload.budget_s, around)
    return table(workload, runs, settings)


def serving(entry: Entry, settings: Settings) -> EmbeddedServer:
    """Returns a server, not yet started, of one entry of the benchmark's repository."""
    log = settings.work / "server.log"
    options = ServerOptions(model_control_mode="explicit", load_models=(entry.name,), log_file=log)
    return EmbeddedServer(settings.repository, options)


def _served(entry: Entry, behind: Behind, url: str, start: Start) -> dict[str, Any]:
    """Returns what a started run measures, with the engine's own time and the memory behind it."""
    with contextlib.closing(InferenceServerClient(url)) as client:
        before = engine_seconds(client, entry)
        measured, peak_bytes = behind.watch(start)
        spent = engine_seconds(client, entry) - before
    return {**measured, "engine_seconds": spent, "server_rss_bytes": peak_bytes}


def engine_seconds(client: InferenceServerClient, entry: Entry) -> float:
    """Returns what the server has spent in the engine; each run of a batch counts once."""
    batches = client.get_inference_statistics(entry.engine_entry).model_stats[0].batch_stats
    return float(sum(batch.compute_infer.ns for batch in batches)) / 1e9


def table(workload: Workload, runs: Runs, settings: Settings) -> Rows:
    """Returns the rows of what was run; times and masks are compared with the first row's. None if that one failed."""
    first = workload.rows[0].name
    if first not in runs:
        settings.leave_out(workload.name, "every row", f"there is nothing to compare with: {first!r} failed")
        return []
    masks = {name: _read(mask_path(workload, name, settings)) for name in runs}
    single = single_path(mask_path(workload, first, settings))
    decided, own = _read(single) if single.exists() else None, masks.get(OWN_PREDICTOR)
    baseline = median(run["seconds"] for run in runs[first])
    rows = []
    for row in workload.rows:
        if row.name not in runs:
            continue
        reference = only(masks[first], row.label) if row.label is None or decided is None else decided
        compared = {**agreement(reference, only(masks[row.name], row.label)), "compared_label": row.label}
        if own is not None:
            compared |= {f"{key}_to_nnunet": figure for key, figure in agreement(own, masks[row.name]).items()}
        names = {"workload": workload.name, "title": workload.title, "row": row.name}
        rows.append({**names, **_measured(runs[row.name], baseline), **compared})
    return rows


def mask_path(workload: Workload, row: str, settings: Settings) -> Path:
    """Returns the path of a row's mask."""
    return settings.work / f"{file_name(f'{workload.name} {row}')}.nii.gz"


def _read(path: Path) -> NDArray[Any]:
    return np.asanyarray(nib.load(path).dataobj)


def _measured(runs: list[dict[str, Any]], baseline: float) -> dict[str, Any]:
    """Returns times and memory. `overhead` is the wall clock over the engine's own compute time."""
    engine, told = median(run["engine_seconds"] for run in runs), spread([run["seconds"] for run in runs], baseline)
    return {
        **told,
        "engine_seconds": round(engine, 4),
        "overhead": round(told["seconds"] / engine, 3) if engine else None,
        "tiles": runs[-1]["tiles"],
        # All that a way needs, its server included.
        "peak_rss_bytes": max(run["peak_rss_bytes"] + run.get("server_rss_bytes", 0) for run in runs),
        "client_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
    }


class Behind:
    """The processes behind a served row: tritonserver (its process is `server`), and those that run the engine."""

    def __init__(self, entry: Entry, server: int) -> None:
        mark = f"{entry.engine_entry}_0_"
        children = psutil.Process(server).children(recursive=True)
        self._engines = [child.pid for child in children if any(word.startswith(mark) for word in child.cmdline())]
        self._server = server

    def watch(self, start: Start) -> tuple[dict[str, Any], int]:
        """Returns the result of what is started, and the sum of the peaks of these processes meanwhile, in bytes.

        What tritonserver shares with a client or an engine counts there, and not here.
        """
        for pid in (self._server, *self._engines):
            forget_peak(pid)
        shared, running = 0, start()
        while not running.done():
            # Now and then, since regions shared with a client are gone when the client is done.
            shared = max(shared, status_bytes("RssShmem", self._server))
            wait([running], WATCH_S)
        return running.result(), peak_rss_bytes(self._server) - shared + sum(map(peak_rss_bytes, self._engines))
