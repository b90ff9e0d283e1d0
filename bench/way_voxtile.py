"""Ours: the client against the running server, from the scan's file to the mask's."""

from __future__ import annotations

import time
from typing import Any

from tritonclient.grpc import InferenceServerClient

from voxtile.cli.allocator import limit_malloc_arenas
from voxtile.io.writing import write_image
from voxtile.options import Options
from voxtile.segmenter import Segmenter
from voxtile.triton.connection import ConnectionConfig

from .ways import Job


class VoxtileScan:
    """options: `skip_empty`, `shared_memory` (None: the client's own choice), `batch`.

    engine_entry: whose compute time is asked of the server's statistics, divided by `instances`. mask: where the mask
    goes; left out, nothing is written.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        limit_malloc_arenas()  # as the command does
        options = Options(
            skip_empty=job.get("skip_empty", False),
            sw_batch_size=job.get("batch"),
            connection=ConnectionConfig(shared_memory=job.get("shared_memory")),
        )
        self.segmenter = Segmenter(job["url"], job["model"], options)
        self.statistics = InferenceServerClient(job["url"])
        if job.get("warm_up"):
            self.segmenter(job["warm_up"])

    def __call__(self) -> dict[str, Any]:
        before = engine_seconds(self.statistics, self.job["engine_entry"])
        begun = time.perf_counter()
        done = self.segmenter.segment(self.job["scan"])
        if "mask" in self.job:
            write_image(done.mask, self.job["mask"])
        seconds = time.perf_counter() - begun
        spent = engine_seconds(self.statistics, self.job["engine_entry"]) - before
        report = done.report
        return {
            "seconds": seconds,
            "engine_seconds": spent / self.job.get("instances", 1),
            "tiles": report.tiles,
            "skipped_tiles": report.skipped_tiles,
            "steps": report.seconds.model_dump(),
            "shared_memory": report.shared_memory,
            "predicted_peak_bytes": report.predicted_peak_bytes,
            "bytes_sent": report.bytes_sent,
            "bytes_received": report.bytes_received,
        }


def engine_seconds(client: Any, entry: str) -> float:
    """Seconds that the server has spent in the engine of `entry`: each run of a batch counts once."""
    statistics = client.get_inference_statistics(entry).model_stats[0]
    return float(sum(batch.compute_infer.ns for batch in statistics.batch_stats)) / 1e9
