"""The result of a load: what JSON, table and plot are made from. Knows nothing of how it was measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from voxtile.errors import in_one_line
from voxtile.load.loop import Sample
from voxtile.load.percentiles import PERCENTILES, Percentile, percentiles_of
from voxtile.load.server import ServerWork


class Latency(BaseModel):
    """Where the latency of a scan goes, in mean seconds; the four add up to `mean`.

    Attributes:
        mean: from the scan's arrival to its mask.
        waiting: until a client was free.
        client: the client's own work: stitching, restoring, the mask.
        compute: of the time that the client waited for scores, what the servers computed for this scan, at most; None
            where the servers do not tell it.
        queue: the rest of it: waiting behind other scans' tiles, and the way there and back; with `compute` None, all.
    """

    mean: float
    waiting: float
    client: float
    compute: float | None
    queue: float


class ScanTime(BaseModel):
    """One scan of a load.

    Attributes:
        model: the model that it was for.
        arrived: seconds after the load began.
        waited: seconds until a client was free.
        seconds: seconds from its arrival to its mask, or to its failure.
        failure: why it failed; empty where it did not.
    """

    model: str
    arrived: float
    waited: float
    seconds: float
    failure: str = ""


class ModelTimes(BaseModel):
    """What one of several models did in a load.

    Attributes:
        model: the model's public name.
        scans: scans that were segmented.
        failed: scans that failed.
        seconds_median: the median of their latencies; None without any.
        percentiles: those that there are enough scans for.
    """

    model: str
    scans: int
    failed: int
    seconds_median: float | None
    percentiles: list[Percentile]


class LoadResult(BaseModel):
    """The result of one load.

    Attributes:
        model: the model's public name; of several, their names with commas between.
        shares: by each model, its share of the scans that were asked for.
        arrivals: `closed`: each client asked for the next scan when it had the last mask; `poisson` or `even`: scans
            came at a rate, whatever the server did.
        rate_per_hour: scans that came in an hour, on average; None for a closed loop.
        clients: clients that asked at once; at a rate, the most that did.
        scans: scans that were segmented.
        failed: scans that failed; no other figure but `samples` counts them.
        failures: how often each failure was, by what it said.
        ended_early: why the load ended before all scans were asked for; empty where it did not.
        unfinished: scans that had come and were not done when it was interrupted; no other figure counts them.
        wall_seconds: seconds from the load's beginning to the last mask, or to the interruption.
        scans_per_hour: scans that were segmented in an hour at this rate.
        tiles_per_second: tiles that were computed in a second.
        seconds_median: the median over scans of the seconds from the arrival to the mask; reading is left out.
        seconds_longest: the longest of these.
        retries: requests that were sent again.
        percentiles: percentiles of these seconds, those that there are enough scans for.
        latency: where a scan's time went; None without any scan.
        by_model: the same for each of several models; empty for one.
        server: what the servers say.
        held: whether the load kept the target; None without a target, and where it was interrupted.
        samples: each scan, in the order of their ends.
    """

    model: str
    shares: dict[str, float]
    arrivals: Literal["closed", "poisson", "even"]
    rate_per_hour: float | None
    clients: int
    scans: int
    failed: int
    failures: dict[str, int]
    ended_early: str
    unfinished: int = 0
    wall_seconds: float
    scans_per_hour: float
    tiles_per_second: float
    seconds_median: float | None
    seconds_longest: float | None
    retries: int
    percentiles: list[Percentile]
    latency: Latency | None
    by_model: list[ModelTimes]
    server: ServerWork
    held: bool | None = None
    samples: list[ScanTime]


class LoadTestResult(BaseModel):
    """The result of rising loads.

    Attributes:
        target: what the load had to keep, such as `p95<30 s`.
        held: the number, in `steps`, of the highest load that kept it; None where none did.
        lost: the number of the lowest load that did not; None where all did.
        interrupted: whether it was interrupted, so that higher loads were not tried.
        steps: the loads, in the order in which they were tried.
    """

    target: str
    held: int | None
    lost: int | None
    interrupted: bool
    steps: list[LoadResult]


def wall_of(samples: Sequence[Sample], ended_s: float = 0.0) -> float:
    """Returns the seconds from the load's beginning to the end of its last scan, or to `ended_s` if that is later."""
    return max([ended_s, *(one.finished for one in samples)])


def result_of(
    samples: Sequence[Sample],
    shares: Mapping[str, float],
    arrivals: Literal["closed", "poisson", "even"],
    rate: float | None,
    clients: int,
    server: ServerWork,
    *,
    ended_early: str = "",
    unfinished: int = 0,
    ended_s: float = 0.0,
    percentiles: Sequence[int] = PERCENTILES,
) -> LoadResult:
    """Returns the result of a load.

    Args:
        samples: what became of each scan.
        shares: by each model, its share of the scans that were asked for.
        arrivals: how scans came.
        rate: scans that came in a second; None for a closed loop.
        clients: the most clients that asked at once.
        server: what the servers say.
        ended_early: why the load ended before its time.
        unfinished: scans that had come and were not done then.
        ended_s: seconds after which it ended, where that was not with its last scan.
        percentiles: the percentiles to tell, where there are enough scans.
    """
    done, wall = [one for one in samples if one.error is None], wall_of(samples, ended_s)
    seconds = [one.seconds for one in done]
    per_second = (1 / wall) if wall > 0 else 0.0
    return LoadResult(
        model=", ".join(shares),
        shares=dict(shares),
        arrivals=arrivals,
        rate_per_hour=None if rate is None else round(3600 * rate, 4),
        clients=clients,
        scans=len(done),
        failed=len(samples) - len(done),
        failures=dict(Counter(in_one_line(one.error) for one in samples if one.error is not None).most_common()),
        ended_early=ended_early,
        unfinished=unfinished,
        wall_seconds=round(wall, 4),
        scans_per_hour=round(3600 * len(done) * per_second, 1),
        tiles_per_second=round(sum(one.tiles for one in done) * per_second, 2),
        seconds_median=round(statistics.median(seconds), 4) if seconds else None,
        seconds_longest=round(max(seconds), 4) if seconds else None,
        retries=sum(one.retries for one in done),
        percentiles=percentiles_of(seconds, percentiles),
        latency=_latency(done, server.own_seconds) if done else None,
        by_model=[_of_model(name, samples, percentiles) for name in shares] if len(shares) > 1 else [],
        server=server,
        samples=[_scan_time(one) for one in samples],
    )


def _latency(done: Sequence[Sample], own_seconds: float | None) -> Latency:
    """The mean parts. What the servers computed while the client stitched was not waited for: it counts nowhere."""
    mean = math.fsum(one.seconds for one in done) / len(done)
    waiting = math.fsum(one.waited_s for one in done) / len(done)
    scores = math.fsum(one.scores_s for one in done) / len(done)
    compute = None if own_seconds is None else min(own_seconds, scores)
    return Latency(
        mean=mean, waiting=waiting, client=mean - waiting - scores, compute=compute, queue=scores - (compute or 0.0)
    )


def _of_model(name: str, samples: Sequence[Sample], percentiles: Sequence[int]) -> ModelTimes:
    own = [one for one in samples if one.model == name]
    seconds = [one.seconds for one in own if one.error is None]
    return ModelTimes(
        model=name,
        scans=len(seconds),
        failed=len(own) - len(seconds),
        seconds_median=round(statistics.median(seconds), 4) if seconds else None,
        percentiles=percentiles_of(seconds, percentiles),
    )


def _scan_time(one: Sample) -> ScanTime:
    return ScanTime(
        model=one.model,
        arrived=round(one.arrived, 6),
        waited=round(one.waited_s, 6),
        seconds=round(one.seconds, 6),
        failure="" if one.error is None else in_one_line(one.error),
    )
