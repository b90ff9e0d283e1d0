"""Resampling of order 3: ours, nnU-Net's own, scipy's."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ways import Job, peak_rss_bytes

SCALE = 1000.0


class Resample:
    """`data` [channel, n, n, n] to m³. A run tells seconds, and the memory beyond input and result.

    compare: measure the largest |Δ| to nnU-Net's own result instead, as a share of the input's range.
    """

    def __init__(self, job: Job) -> None:
        rng = np.random.default_rng(0)
        self.data = rng.random((job["channels"], *[job["size"]] * 3), dtype=np.float32) * np.float32(SCALE)
        self.target = (job["target"],) * 3
        self.work = {"voxtile": ours, "nnunet": nnunet, "scipy": scipy}[job["by"]]
        self.compare = bool(job.get("compare"))
        self.before = peak_rss_bytes()
        self.work(self.data[:1, :8, :8, :8], (10, 10, 10))

    def __call__(self) -> dict[str, Any]:
        begun = time.perf_counter()
        result = self.work(self.data, self.target)
        seconds = time.perf_counter() - begun
        extra = peak_rss_bytes() - self.before - result.nbytes
        told: dict[str, Any] = {"seconds": seconds, "extra_bytes": max(extra, 0)}
        if self.compare:
            told["error"] = float(np.abs(result - nnunet(self.data, self.target)).max()) / SCALE
        return told


def ours(data: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[Any]:
    from voxtile.chains.nnunet.resampling import resample

    return resample(data, shape, order=3)


def nnunet(data: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[Any]:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    result: NDArray[Any] = resample_data_or_seg(data, shape, is_seg=False, order=3)
    return result


def scipy(data: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[Any]:
    from scipy.ndimage import zoom

    factors = [new / old for new, old in zip(shape, data.shape[1:], strict=True)]
    return np.stack([zoom(channel, factors, order=3, mode="nearest", grid_mode=True) for channel in data])
