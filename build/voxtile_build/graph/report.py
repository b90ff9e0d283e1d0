"""What a build reports about its graphs: operators before and after each pass. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voxtile_build.graph.passes.verify import PassReport

MOST_OPERATORS = 4


def as_lines(reports: Mapping[str, Sequence[PassReport]]) -> Iterable[str]:
    """A line for each pass: `graph: pass: nodes before -> after (operators whose count changed)`."""
    for graph, passes in reports.items():
        for report in passes:
            by_size = sorted(report.changed.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
            shown = ", ".join(
                f"{operator} {before} -> {after}" for operator, (before, after) in by_size[:MOST_OPERATORS]
            )
            more = f" ({shown}{', …' if len(by_size) > MOST_OPERATORS else ''})" if shown else ""
            yield f"{graph}: {report.name}: {report.nodes_before} -> {report.nodes_after} nodes{more}"


def as_json(reports: Mapping[str, Sequence[PassReport]]) -> dict[str, Any]:
    """Plain JSON for build.json."""
    return {graph: [report.as_dict() for report in passes] for graph, passes in reports.items()}
