"""The result of a load as lines of text. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from voxtile.load.percentiles import PERCENTILES, Percentile, least_samples
from voxtile.load.result import LoadResult, LoadTestResult
from voxtile.load.units import in_words

FIGURES = (
    "model", "arrivals", "rate_per_hour", "clients", "scans", "failed", "ended_early", "unfinished", "wall_seconds",
    "scans_per_hour", "tiles_per_second", "seconds_median", "seconds_longest", "retries",
)  # fmt: skip
"""The fields that are told by their names."""

Row = Sequence[str]


def load_lines(result: LoadResult) -> Iterator[str]:
    """Yields the lines of one load: its figures, percentiles, failures, where the time went, the servers' entries."""
    for name in FIGURES:
        value = getattr(result, name)
        if value not in (None, "") and (value or name != "unfinished"):
            yield f"{name.replace('_', ' '):16} {value}"
    yield from (f"failed {count:9} {text}" for text, count in result.failures.items())
    yield ""
    yield from aligned(_percentile_rows(result))
    yield from _where(result)
    yield from _server(result)


def rising_lines(result: LoadTestResult) -> Iterator[str]:
    """Yields the lines of rising loads: a row for each, then what they say of the target."""
    yield from aligned([_STEP_HEAD, *(_step_row(one) for one in result.steps)])
    yield ""
    yield verdict(result)


def verdict(result: LoadTestResult) -> str:
    """What rising loads say of the target, in a sentence."""
    held = None if result.held is None else result.steps[result.held]
    lost = None if result.lost is None else result.steps[result.lost]
    said = "kept by no load"
    if held is not None:
        said = f"kept at {level(held)}, with {held.scans_per_hour:g} scans done an hour"
    if lost is not None:
        said += f"; it is lost at {level(lost)}"
    elif not result.interrupted:
        said += "; no higher load was tried"
    return f"{result.target}: {said}" + ("; interrupted" if result.interrupted else "")


def level(result: LoadResult) -> str:
    """How hard a load pressed, in words."""
    if result.rate_per_hour is not None:
        rate = result.rate_per_hour
        return f"{rate:,.0f} an hour" if rate >= 100 else f"{rate:.3g} an hour"
    return f"{result.clients} client{'s' if result.clients > 1 else ''}"


def aligned(rows: Sequence[Row]) -> Iterator[str]:
    """Yields rows as lines, each column as wide as its widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:{widths[0]}}", *cells]).rstrip()


def _percentile_rows(result: LoadResult) -> list[Row]:
    rows: list[Row] = [("from arrival to mask", "scans", *(f"p{p}" for p in PERCENTILES))]
    if result.by_model:
        rows += [(one.model, str(one.scans), *_cells(one.percentiles)) for one in result.by_model]
    return [*rows, ("all" if result.by_model else "", str(result.scans), *_cells(result.percentiles, bounds=True))]


def _cells(percentiles: Sequence[Percentile], *, bounds: bool = False) -> Iterator[str]:
    """A cell for each percentile: it with its interval, or how many scans it takes."""
    known = {one.p: one for one in percentiles}
    for p in PERCENTILES:
        if (one := known.get(p)) is None:
            yield f"needs {least_samples(p)}"
        else:
            yield in_words(one.seconds) + (f" [{_bound(one.low)}, {_bound(one.high)}]" if bounds else "")


def _bound(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.3g}"


def _where(result: LoadResult) -> Iterator[str]:
    if (latency := result.latency) is None:
        return
    parts = [("waiting for a free client", latency.waiting), ("the client's work", latency.client)]
    if latency.compute is None:
        parts.append(("queue, computing and way", latency.queue))
    else:
        parts += [("the server's computing", latency.compute), ("queue and way", latency.queue)]
    yield ""
    rows = [("of a mean scan", in_words(latency.mean), "100%")]
    rows += [(name, in_words(seconds), f"{100 * seconds / latency.mean:.0f}%") for name, seconds in parts]
    yield from aligned(rows)


def _server(result: LoadResult) -> Iterator[str]:
    server = result.server
    if server.entries:
        head = ("entry of the server", "requests", "failed", "tiles", "batch", "queue", "compute", "other", "busy")
        yield ""
        yield from aligned([head, *(
            (
                one.entry, str(one.requests), str(one.failed), str(one.tiles),
                f"{one.tiles / one.executions:.2f}" if one.executions else "-",
                f"{in_words(one.queue_seconds)} {one.queue_share:.0%}",
                f"{in_words(one.compute_seconds)} {one.compute_share:.0%}",
                f"{one.other_share:.0%}", f"{one.busy:.2f}",
            )
            for one in server.entries
        )])  # fmt: skip
    if server.note:
        yield server.note


_STEP_HEAD = ("load", "scans", "failed", "scans/h", "p50", "p90", "p95", "p99", "longest", "busy", "target")


def _step_row(result: LoadResult) -> Row:
    longest = "-" if result.seconds_longest is None else in_words(result.seconds_longest)
    busy = max((one.busy for one in result.server.entries), default=None)
    held = {True: "held", False: "lost", None: "-"}[result.held]
    return (
        level(result), str(result.scans), str(result.failed), f"{result.scans_per_hour:g}", *_cells(result.percentiles),
        longest, "-" if busy is None else f"{busy:.2f}", held,
    )  # fmt: skip
