"""Peak memory for a large scan with few and with many scores: MONAI's, ours, and what our client predicts."""

from __future__ import annotations

from .entries import free_entry
from .figures import Rows
from .scans import Shape, by, ct_scan
from .section_scans import serving
from .settings import Settings
from .turns import take_turns
from .ways import WindowedScan, voxtile_scan

MONAI = "MONAI sliding_window_inference"


def measure(_: str, settings: Settings) -> Rows:
    """Returns the rows of 512×512×300 (a quick run: 256×256×150), each way once, in a process of its own."""
    return [row for scores in settings.pick((2, 14), (2, 14), (14,)) for row in _pair(scores, settings)]


def _pair(scores: int, settings: Settings) -> Rows:
    """Returns the rows of MONAI's function and of ours for the same work."""
    shape: Shape = settings.pick((512, 512, 300), (256, 256, 150), (64, 64, 40))
    part, roi = f"peak memory, {by(shape)}, {scores} scores", (settings.pick(96, 96, 16),) * 3
    entry = free_entry(scores, "int16", "fp32", roi, settings)
    job = {"scan": ct_scan(settings.data, shape), "warm_up": ct_scan(settings.data, roi), "roi": roi, "overlap": 0.25}
    job["mask"] = settings.work / "memory.nii.gz"
    theirs = {**job, "engine": "free", "scores": scores, "as_it_is": True}
    with serving(entry, settings) as server:
        ours = {**job, "url": server.grpc_url, "name": entry.name}
        runs = take_turns({MONAI: (WindowedScan, theirs), "Voxtile": (voxtile_scan, ours)}, settings, part, 0)
    memory = {way: run["peak_rss_bytes"] - run["idle_rss_bytes"] for way, (run, *_) in runs.items()}
    rows: Rows = []
    for way, (run, *_) in runs.items():
        note = "memory over the idle process"
        if way != MONAI:
            share, whole = memory[way] / max(memory[MONAI], 1), run["peak_rss_bytes"] / 2**20
            note = f"{share:.2f} of MONAI's; whole process {whole:.0f} MiB"
        told = {"peak_rss_bytes": memory[way], "predicted_peak_bytes": run.get("predicted_peak_bytes"), "note": note}
        rows.append({"part": part, "way": way, "seconds": round(run["seconds"], 3), "ratio": None, **told})
    return rows
