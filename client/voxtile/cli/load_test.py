"""How many scans a service segments, and how long each takes, when several clients ask at once."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from voxtile.errors import VoxtileError
from voxtile.segmenter import Loaded, Options, Segmenter


class LoadResult(BaseModel):
    """Figures of one run. seconds: of one scan, from its first tile to its mask, reading left out."""

    model: str
    clients: int
    scans: int
    wall_seconds: float
    scans_per_hour: float
    tiles_per_second: float
    seconds_median: float
    seconds_longest: float
    retries: int


def run_load_test(
    urls: Sequence[str], model: str, image: Any, *, clients: int = 2, scans: int = 8, options: Options | None = None
) -> LoadResult:
    """Lets `clients` clients segment `image` over and over until `scans` scans are done (one before that, uncounted).

    Raises what a single segmentation would raise.
    """
    segmenters = [Segmenter(urls, model, options) for _ in range(clients)]
    try:
        segmenters[0].segment(image)
        run = _Run(segmenters, [segmenter.load(image) for segmenter in segmenters], scans)
        return run.result()
    finally:
        for segmenter in segmenters:
            segmenter.close()


class _Run:
    """One run of several clients, a thread each, that take scans from one counter."""

    def __init__(self, segmenters: Sequence[Segmenter], loaded: Sequence[Loaded], scans: int) -> None:
        self.segmenters = segmenters
        self.loaded = loaded
        self.left = scans
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.tiles = 0
        self.errors: list[VoxtileError] = []

    def result(self) -> LoadResult:
        begun = time.perf_counter()
        threads = [threading.Thread(target=self._client, args=(index,)) for index in range(len(self.segmenters))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        wall = time.perf_counter() - begun
        return LoadResult(
            model=self.segmenters[0].card.name,
            clients=len(self.segmenters),
            scans=len(self.seconds),
            wall_seconds=round(wall, 4),
            scans_per_hour=round(3600 * len(self.seconds) / wall, 1),
            tiles_per_second=round(self.tiles / wall, 2),
            seconds_median=round(statistics.median(self.seconds), 4),
            seconds_longest=round(max(self.seconds), 4),
            retries=sum(segmenter.transport.traffic.retries for segmenter in self.segmenters),
        )

    def _client(self, index: int) -> None:
        while self._take():
            begun = time.perf_counter()
            try:
                report = self.segmenters[index].run(self.loaded[index]).report
            except VoxtileError as error:
                self.errors.append(error)
                return
            with self.lock:
                self.seconds.append(time.perf_counter() - begun)
                self.tiles += report.tiles

    def _take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0 and not self.errors
