"""Draws loads as a picture: each scan by its arrival, and how latencies are spread or how they rise with the load.

matplotlib is imported only here, and only when a picture is drawn. Knows nothing of how loads are measured.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.extras import require
from voxtile.io.atomic import atomic_file
from voxtile.load.result import LoadResult
from voxtile.load.target import Target

SIZE, DPI = (11.0, 4.6), 120
"""Inches and pixels an inch: 1320 by 552 pixels."""


def check_plot() -> None:
    """Raises MissingExtraError where no picture can be drawn."""
    require("matplotlib", "preview", "--plot")


def draw_loads(results: Sequence[LoadResult], target: Target | None, path: Path) -> None:
    """Draws the loads and writes the picture atomically.

    Args:
        results: one load or several, in the order in which they were measured.
        target: the limit to draw; None for none.
        path: the PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(SIZE, dpi=DPI, layout="constrained")
    figure.suptitle(_plain(_title(results)))
    left, right = figure.subplots(1, 2)
    if len(results) > 1:
        _rising(left, results, target)
        _throughput(right, results)
    else:
        _by_arrival(left, results[0], target)
        _spread(right, results[0])
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: it takes what stands between dollars for a formula, and hides `_labels`."""
    return f" {text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


def _title(results: Sequence[LoadResult]) -> str:
    first = results[0]
    if len(results) > 1:
        return f"{first.model}: {len(results)} loads"
    came = "" if first.rate_per_hour is None else f", {first.arrivals} arrivals at {first.rate_per_hour:g} an hour"
    return f"{first.model}: {first.clients} clients{came}, {first.scans_per_hour:g} scans done an hour"


def _by_arrival(axes: Any, result: LoadResult, target: Target | None) -> None:
    """Each scan by its arrival: a queue that grows is a line that rises."""
    for model in result.shares:
        done = [one for one in result.samples if one.model == model and not one.failure]
        axes.plot([one.arrived for one in done], [one.seconds for one in done], "o", markersize=4, label=_plain(model))
    failed = [one for one in result.samples if one.failure]
    if failed:
        axes.plot([one.arrived for one in failed], [one.seconds for one in failed], "rx", label="failed")
    _limit(axes, target)
    axes.set(xlabel="arrival (s)", ylabel="seconds from arrival to mask", ylim=(0, None))
    if result.samples:
        axes.legend()


def _spread(axes: Any, result: LoadResult) -> None:
    """The share of scans that took at most so long, and the percentiles that there are enough scans for."""
    seconds = sorted(one.seconds for one in result.samples if not one.failure)
    share = 100 * np.arange(1, len(seconds) + 1) / max(len(seconds), 1)
    axes.step(seconds, share, where="post")
    for one in result.percentiles:
        axes.plot(one.seconds, one.p, "ko", markersize=4)
        axes.annotate(f"p{one.p}", (one.seconds, one.p), (4, -10), textcoords="offset points")
    axes.set(xlabel="seconds from arrival to mask", ylabel=f"% of {len(seconds)} scans", ylim=(0, 100), xlim=(0, None))


def _rising(axes: Any, results: Sequence[LoadResult], target: Target | None) -> None:
    ordered = sorted(results, key=_level)
    for p in sorted({one.p for result in ordered for one in result.percentiles}):
        points = [(_level(result), one.seconds) for result in ordered for one in result.percentiles if one.p == p]
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=f"p{p}")
    longest = [(_level(one), one.seconds_longest) for one in ordered if one.seconds_longest is not None]
    if longest:
        axes.plot(*zip(*longest, strict=True), ":", color="grey", label="longest")
    _limit(axes, target)
    axes.set(xlabel=_level_name(results), ylabel="seconds from arrival to mask", ylim=(0, None))
    axes.legend()


def _throughput(axes: Any, results: Sequence[LoadResult]) -> None:
    ordered = sorted(results, key=_level)
    axes.plot([_level(one) for one in ordered], [one.scans_per_hour for one in ordered], "-", color="grey")
    for held, colour, said in ((True, "tab:green", "held"), (False, "tab:red", "lost"), (None, "grey", "interrupted")):
        some = [(_level(one), one.scans_per_hour) for one in ordered if one.held is held]
        if some:
            axes.plot(*zip(*some, strict=True), "o", color=colour, label=said)
    axes.set(xlabel=_level_name(results), ylabel="scans an hour", ylim=(0, None))
    axes.legend()


def _limit(axes: Any, target: Target | None) -> None:
    if target is not None:
        axes.axhline(target.limit_s, color="tab:red", linestyle="--", label=str(target))


def _level(result: LoadResult) -> float:
    return result.clients if result.rate_per_hour is None else result.rate_per_hour


def _level_name(results: Sequence[LoadResult]) -> str:
    return "clients" if results[0].rate_per_hour is None else "scans that come in an hour"
