"""What the gateway counts, for Prometheus. No names of files, no headers of scans."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from voxtile.outputs.report import Seconds


class Metrics:
    """Counters and gauges of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._scans = Counter("voxtile_scans", "Scans whose work has ended", ["model"], registry=self._registry)
        self._seconds = Counter(
            "voxtile_seconds", "Seconds of finished scans by step", ["model", "step"], registry=self._registry
        )
        self._refusals = Counter("voxtile_refusals", "Requests without a mask", ["status"], registry=self._registry)
        self._busy = Gauge("voxtile_jobs", "Scans that run or wait", registry=self._registry)

    def watch(self, busy: Callable[[], int]) -> None:
        """Take the number of jobs from `busy` whenever somebody asks."""
        self._busy.set_function(busy)

    def scanned(self, model: str) -> None:
        """The work on a scan has ended, well or not."""
        self._scans.labels(model).inc()

    def measured(self, model: str, seconds: Seconds) -> None:
        """A scan is segmented."""
        for step, value in seconds.model_dump(exclude={"total"}).items():
            self._seconds.labels(model, step).inc(value)

    def refused(self, status: int) -> None:
        """A request got an error."""
        self._refusals.labels(str(status)).inc()

    def text(self) -> str:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry).decode()
