"""Peak memory of the client on a large scan with few and with many scores: predicted, measured, and MONAI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .free import free_entry
from .scan_rows import serving
from .section_parts import Rows, ct_file, ct_shape
from .settings import Settings
from .worker import Worker, WorkerError

SCORES = (2, 14)
OVERLAP = 0.25


def measure(settings: Settings) -> Rows:
    """512×512×300 (a quick run: 256×256×150), 2 and 14 scores, each way in a process of its own, once."""
    roi = 16 if settings.tiny else 96
    entries = {
        scores: free_entry(f"free-{scores}", scores, "int16", "fp32", roi, settings)
        for scores in (SCORES[1:] if settings.tiny else SCORES)
    }
    scan, rows = ct_file(settings), []
    with serving([entry.name for entry in entries.values()], settings) as server:
        for scores, entry in entries.items():
            part = f"peak memory, {'×'.join(map(str, ct_shape(settings)))}, {scores} scores"
            rows += _pair(part, scores, entry.name, entry.engine_entry, server.grpc_url, scan, roi, settings)
    return rows


def _pair(part: str, scores: int, model: str, entry: str, url: str, scan: Path, roi: int, settings: Settings) -> Rows:
    """MONAI's function and ours on the same work; `peak_rss_bytes` is what lies over the idle process."""
    theirs = {"way": "free", "scan": str(scan), "roi": [roi] * 3, "overlap": OVERLAP, "scores": scores}
    ours = {"way": "voxtile", "url": url, "model": model, "engine_entry": entry, "scan": str(scan)}
    rows: list[dict[str, Any]] = []
    for way, job in (("MONAI sliding_window_inference", theirs), ("Voxtile", ours)):
        try:
            with Worker(job, settings.work / f"memory-{scores}-{job['way']}.log") as worker:
                run, idle = worker(), worker.ready["rss_bytes"]
        except WorkerError as error:
            settings.leave_out(part, way, str(error))
            continue
        rows.append(
            {
                "part": part,
                "way": way,
                "seconds": round(run["seconds"], 3),
                "ratio": None,
                "peak_rss_bytes": run["peak_rss_bytes"] - idle,
                "process_rss_bytes": run["peak_rss_bytes"],
                "predicted_peak_bytes": run.get("predicted_peak_bytes"),
                "note": "memory over the idle process; predicted for the whole process",
            }
        )
    if len(rows) == 2:
        rows[1]["memory_share"] = round(rows[1]["peak_rss_bytes"] / max(rows[0]["peak_rss_bytes"], 1), 3)
        rows[1]["note"] = (
            f"{rows[1]['memory_share']:.2f} of MONAI's; whole process {rows[1]['process_rss_bytes'] / 2**20:.0f} MiB"
        )
        rows[0]["note"] = "memory over the idle process"
    return rows
