"""What the gateway counts, for Prometheus. No names of files, no headers of scans.

A model's name becomes a label only once a server has said that there is such a model.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.registry import Collector

from voxtile.card import Card
from voxtile.errors import OtherBuildError
from voxtile.outputs.report import Report
from voxtile_server.gateway.failures import STATUS, failure_of
from voxtile_server.gateway.metrics.drift import Drift

CALLER, SERVICE, OTHER_BUILD = "caller", "service", "other_build"
FAULTS = (CALLER, SERVICE, OTHER_BUILD)
"""Whose fault it is that a scan failed: what was sent or asked for; what serves; a model replaced meanwhile."""

SERVER_ERRORS = sorted({status for _, status in STATUS if status >= 500} | {500, 507})
"""Statuses that are counted from 0, so that the first of them is an increase."""

CALLERS_STATUS = (413, 415, 422)
"""What a caller is told of a scan that cannot be taken. The model was there when the work began: 404 is not theirs."""


class Metrics:
    """Counters and gauges of one gateway.

    Args:
        places: scans that may run or wait.
        behind: what tells what is served; None for nothing.
    """

    def __init__(self, places: int, behind: Collector | None = None) -> None:
        self._registry = CollectorRegistry()
        self._scans = Counter("voxtile_scans", "Scans whose work has ended", ["model"], registry=self._registry)
        self._failed = Counter(
            "voxtile_failed_scans", "Scans whose work has failed", ["model", "fault"], registry=self._registry
        )
        self._seconds = Counter(
            "voxtile_seconds", "Seconds of finished scans by step", ["model", "step"], registry=self._registry
        )
        self._refusals = Counter("voxtile_refusals", "Requests without a mask", ["status"], registry=self._registry)
        for status in SERVER_ERRORS:
            self._refusals.labels(str(status))
        self._busy = Gauge("voxtile_jobs", "Scans that run or wait", registry=self._registry)
        Gauge("voxtile_places", "Scans that may run or wait", registry=self._registry).set(places)
        self._drift = Drift(self._registry)
        if behind is not None:
            self._registry.register(behind)

    def watch(self, busy: Callable[[], int]) -> None:
        """Take the number of jobs from `busy` whenever somebody asks."""
        self._busy.set_function(busy)

    def expect(self, model: str) -> None:
        """There is such a model: its counters begin at 0, so that its first failure is an increase."""
        self._scans.labels(model)
        for fault in FAULTS:
            self._failed.labels(model, fault)

    def scanned(self, model: str) -> None:
        """The work on a scan has ended, well or not."""
        self._scans.labels(model).inc()

    def failed(self, model: str, error: Exception) -> None:
        """The work on a scan has failed."""
        self._failed.labels(model, fault_of(error)).inc()

    def measured(self, report: Report, card: Card) -> None:
        """A scan is segmented."""
        for step, value in report.seconds.model_dump(exclude={"total"}).items():
            self._seconds.labels(report.model, step).inc(value)
        self._drift.saw(report, card)

    def refused(self, status: int) -> None:
        """A request got an error."""
        self._refusals.labels(str(status)).inc()

    def text(self) -> str:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry).decode()


def fault_of(error: Exception) -> str:
    """Whose fault an error is."""
    if isinstance(error, OtherBuildError):
        return OTHER_BUILD
    return CALLER if failure_of(error, "").status in CALLERS_STATUS else SERVICE
