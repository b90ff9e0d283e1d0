"""Clients on threads of their own, each with its own connections, which segment scans that are already prepared.

Knows nothing of when scans arrive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voxtile.card import Card
from voxtile.job import Cancellation
from voxtile.load.loop import Sample, Visit
from voxtile.outputs.report import Report
from voxtile.segmenter import LoadedScan, Segmenter
from voxtile.tiling.extract import tta_flips


@dataclass(frozen=True)
class Task:
    """What a client does for one model.

    Attributes:
        segmenter: the client's connection to the model.
        loaded: the scan, prepared for it; clients share it.
    """

    segmenter: Segmenter
    loaded: LoadedScan


class Clients:
    """A crew of clients; a context manager, which starts the clock, and at its end stops what is still in progress.

    Args:
        tasks: of each client, its task for each model, by the model's name.
    """

    def __init__(self, tasks: Sequence[Mapping[str, Task]]) -> None:
        self.size = len(tasks)
        self._jobs: queue.SimpleQueue[Visit | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Sample] = queue.SimpleQueue()
        self._lock, self._running, self._stopped = threading.Lock(), set[Cancellation](), False
        self._threads = [threading.Thread(target=self._client, args=(one,), daemon=True) for one in tasks]
        self._begun = 0.0

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for cancellation in self._running:
                cancellation.cancel()
        for _thread in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def now(self) -> float:
        return time.perf_counter() - self._begun

    def start(self, visit: Visit) -> None:
        self._jobs.put(visit)

    def wait(self, until: float | None) -> Sample | None:
        try:
            return self._done.get(timeout=None if until is None else max(until - self.now(), 0.0))
        except queue.Empty:
            return None

    def _client(self, tasks: Mapping[str, Task]) -> None:
        while (visit := self._jobs.get()) is not None:
            cancellation = Cancellation()
            with self._lock:
                if self._stopped:
                    return
                self._running.add(cancellation)
            self._done.put(self._segmented(visit, tasks[visit.model], cancellation))
            with self._lock:
                self._running.discard(cancellation)

    def _segmented(self, visit: Visit, task: Task, cancellation: Cancellation) -> Sample:
        started = self.now()
        try:
            report = task.segmenter.run(task.loaded, cancellation=cancellation).report
        except Exception as error:  # whatever it is, this scan failed, and the load goes on
            return Sample(visit.model, visit.arrived, started, self.now(), error=error)
        return Sample(
            visit.model,
            visit.arrived,
            started,
            self.now(),
            scores_s=report.seconds.infer - task.loaded.seconds.infer,
            tiles=_tiles_computed(task.segmenter, report),
            retries=report.retries,
        )


def _tiles_computed(segmenter: Segmenter, report: Report) -> int:
    """Tiles that the server computed for a scan: each flip of a tile is one, and so is one that is sent again."""
    if report.parts:
        flips = [_flips(part.card, part) for part in segmenter.parts]
        return sum(part.tiles * count for part, count in zip(report.parts, flips, strict=True))
    return (report.tiles + report.tiles_sent_again + report.spot_checked_tiles) * _flips(segmenter.card, segmenter)


def _flips(card: Card, segmenter: Segmenter) -> int:
    return len(tta_flips(card.mirror_axes if segmenter.options.mirror else ()))
