"""Order-3 resampling against nnU-Net's own and scipy's: time, memory beyond input and result, error."""

from __future__ import annotations

from typing import Any

from .section_parts import Rows, rows_of
from .settings import Settings
from .timing import interleave
from .worker import Worker

CHANNELS = 4
WAYS = {"nnU-Net's own": "nnunet", "scipy.ndimage.zoom": "scipy", "Voxtile": "voxtile"}


def measure(settings: Settings) -> Rows:
    """4 channels 256³ → 400³ (a quick run: 128³ → 200³), each way in a process of its own."""
    size, target = (16, 25) if settings.tiny else (128, 200) if settings.quick else (256, 400)
    job = {"way": "resample", "size": size, "target": target, "channels": CHANNELS}
    workers: dict[str, Worker] = {}
    try:
        for name, by in WAYS.items():
            workers[name] = Worker({**job, "by": by}, settings.work / f"resample-{by}.log")
        runs = interleave(workers, settings.repetitions, settings.budget_s(80))
    finally:
        for worker in workers.values():
            worker.close()
    note = f"{CHANNELS} channels {size}³ → {target}³"
    rows = rows_of(
        "resampling of order 3", {name: [run["seconds"] for run in some] for name, some in runs.items()}, note
    )
    for row in rows:
        row["peak_rss_bytes"] = max(run["extra_bytes"] for run in runs[row["way"]])
    rows[-1]["error"] = error(job, settings)
    return rows


def error(job: dict[str, Any], settings: Settings) -> float:
    """The largest |Δ| of ours to nnU-Net's own, as a share of the range."""
    with Worker(
        {**job, "by": "voxtile", "compare": True, "channels": 1}, settings.work / "resample-error.log"
    ) as worker:
        return float(worker()["error"])
