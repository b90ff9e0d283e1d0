"""Measures how many scans a service segments, and how long each takes, when several clients ask at once.

Knows nothing of terminals.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Sequence

from pydantic import BaseModel

from voxtile.io.scan import ScanInput
from voxtile.options import Options
from voxtile.segmenter import LoadedScan, Segmenter


class LoadResult(BaseModel):
    """The result of a load test.

    Attributes:
        model: the model's public name.
        clients: clients that asked at once.
        scans: scans that were segmented.
        wall_seconds: seconds from the first scan's start to the last one's end.
        scans_per_hour: scans that were segmented in an hour at this rate.
        tiles_per_second: tiles that were computed in a second.
        seconds_median: the median over scans of the seconds from its first tile to its mask; reading is left out.
        seconds_longest: the longest of these.
        retries: requests that were sent again.
    """

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
    urls: Sequence[str],
    model: str,
    image: ScanInput,
    *,
    clients: int = 2,
    scans: int = 8,
    options: Options | None = None,
) -> LoadResult:
    """Lets several clients segment the same scan over and over; one segmentation before that is not counted.

    Args:
        urls: HOST:PORT of the servers' gRPC services.
        model: the model's public name.
        image: the scan; see `Segmenter.segment`.
        clients: clients that ask at once.
        scans: scans in all.
        options: how to segment.

    Raises:
        VoxtileError: as for a single segmentation.
    """
    with contextlib.ExitStack() as stack:
        segmenters = [stack.enter_context(Segmenter(urls, model, options)) for _ in range(clients)]
        loaded = segmenters[0].load(image)
        segmenters[0].run(loaded)
        return _Run(segmenters, loaded, scans).result()


class _Run:
    """One run of several clients, each on a thread of its own, which take scans from one counter."""

    def __init__(self, segmenters: Sequence[Segmenter], loaded: LoadedScan, scans: int) -> None:
        self.segmenters = segmenters
        self.loaded = loaded
        self.left = scans
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.tiles = 0
        self.retries = 0
        self.errors: list[Exception] = []

    def result(self) -> LoadResult:
        begun = time.perf_counter()
        threads = [threading.Thread(target=self._client, args=(segmenter,)) for segmenter in self.segmenters]
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
            retries=self.retries,
        )

    def _client(self, segmenter: Segmenter) -> None:
        while self._take():
            begun = time.perf_counter()
            try:
                report = segmenter.run(self.loaded).report
            except Exception as error:  # whatever it is, the test measured nothing
                self.errors.append(error)
                return
            with self.lock:
                self.seconds.append(time.perf_counter() - begun)
                self.tiles += report.tiles
                self.retries += report.retries

    def _take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0 and not self.errors
