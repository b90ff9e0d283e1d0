"""Order-3 resampling by voxtile and by nnU-Net: time, memory beyond input and result, error."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from .engines import Array, Job, Way
from .figures import Rows, spread
from .memory import peak_rss_bytes
from .settings import Settings
from .turns import take_turns

RANGE = 1000.0  # of the random values


def measure(_: str, settings: Settings) -> Rows:
    """Returns the rows of 4 channels 256³ → 400³ (a quick run: 128³ → 200³), each way in a process of its own."""
    size, target = settings.pick((256, 400), (128, 200), (16, 25))
    part, job = "resampling of order 3", {"size": size, "target": target, "channels": 4}
    runs = take_turns({name: (resample, {**job, "by": name}) for name in RESAMPLERS}, settings, part, 80)
    rows: Rows = []
    for way, some in runs.items():
        baseline = median(run["seconds"] for run in runs[next(iter(RESAMPLERS))])
        measured = spread([run["seconds"] for run in some], baseline)
        told = {"peak_rss_bytes": max(run["extra_bytes"] for run in some), "error": some[-1]["error"]}
        rows.append({"part": part, "way": way, **measured, **told, "note": f"4 channels {size}³ → {target}³"})
    return rows


def resample(job: Job) -> Way:
    """Order 3, `channels` × `size`³ to `target`³, `by` one of RESAMPLERS.

    A run measures the memory beyond input and result too. `error` is the largest difference from nnU-Net's result for a
    small volume, as a share of the range.
    """
    rng = np.random.default_rng(0)
    data = rng.random((job["channels"], *[job["size"]] * 3), dtype=np.float32) * np.float32(RANGE)
    target, work, small = (job["target"],) * 3, RESAMPLERS[job["by"]], data[:1, :16, :16, :16]
    before = peak_rss_bytes()
    error = float(np.abs(work(small, (25,) * 3) - _nnunet(small, (25,) * 3)).max()) / RANGE

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        result = work(data, target)
        seconds = time.perf_counter() - started
        extra = max(peak_rss_bytes() - before - result.nbytes, 0)
        return {"seconds": seconds, "extra_bytes": extra, "error": error}

    return run


def _nnunet(data: Array, shape: tuple[int, ...]) -> Array:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    return np.asarray(resample_data_or_seg(data, shape, is_seg=False, order=3))


def _voxtile(data: Array, shape: tuple[int, ...]) -> Array:
    from voxtile.chains.nnunet.resampling import resample

    return resample(data, shape, order=3)


RESAMPLERS = {"nnU-Net's own": _nnunet, "Voxtile": _voxtile}
