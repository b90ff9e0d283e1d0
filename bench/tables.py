"""The figures as Markdown tables. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


def number(value: float | None) -> str:
    """Returns three significant digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float) -> str:
    """Returns a share as a percentage; a tiny one as a power of ten."""
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-4 else f"{100 * value:.3g} %"


def _seconds(row: Row) -> str:
    """Returns the median, and the fastest and the slowest if there were several runs."""
    if row.get("runs", 1) < 2:
        return number(row["seconds"])
    return f"{number(row['seconds'])} ({number(row['seconds_low'])}–{number(row['seconds_high'])})"


def column(title: str, key: str, text: Callable[[Any], str] = str) -> Column:
    """Returns a column of one key; a cell is empty if the row has no value."""
    return title, lambda row: "" if row.get(key) is None else text(row[key])


def mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


RATIO, SECONDS = column("ratio", "ratio", "{:.2f}×".format), ("seconds", _seconds)
OVERHEAD = column("wall / engine", "overhead", number)
AGREEMENT = (column("Dice min", "dice_min", "{:.4f}".format), column("changed", "changed_fraction", share))
SCAN_COLUMNS = (
    column("way", "row"), RATIO, SECONDS, OVERHEAD, column("peak memory", "peak_rss_bytes", mebibytes), *AGREEMENT,
    column("Dice to nnU-Net's", "dice_min_to_nnunet", "{:.4f}".format),
)  # fmt: skip
PART_COLUMNS = (
    column("way", "way"), RATIO, SECONDS, OVERHEAD, column("memory", "peak_rss_bytes", mebibytes),
    column("predicted", "predicted_peak_bytes", mebibytes), column("error", "error", "{:.1e}".format),
    column("note", "note"),
)  # fmt: skip
ENGINE_COLUMNS = (
    column("engine", "engine"), column("precision", "precision"), column("batch", "batch"), RATIO,
    column("seconds a ROI", "seconds_per_roi", number), *AGREEMENT,
)  # fmt: skip
EXPLANATION = (
    "Ratios are to the first row of each table. Seconds run from the scan's file to the mask's, medians of "
    "repetitions that took turns. Peak memory counts everything that a way needs, a server included. Dice and changed "
    "voxels are against the first row's mask; where a network's weights were not trained they say how far two ways "
    "agree, and nothing about the mask."
)


def grouped(rows: Sequence[Row], key: str, columns: Sequence[Column]) -> list[str]:
    """Returns a heading and a table for each run of rows with the same `key`."""
    blocks = []
    for name, some in groupby(rows, key=lambda row: row[key]):
        group = list(some)
        blocks += [f"#### {group[0].get('title', name)}", table(group, columns)]
    return blocks


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Returns a Markdown table without the columns that are empty in every row."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    shown = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    lines = [[columns[index][0] for index in shown], ["---"] * len(shown)]
    lines += [[row[index] for index in shown] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(facts: Row) -> str:
    """Returns a paragraph: what was measured on, and what that machine can do at best."""
    roof = ", ".join(f"{name} {value:g}" for name, value in facts.get("roofline", {}).items())
    quick = " A quick run: small scans, few repetitions." if facts.get("quick") else ""
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    cores = f"{facts['cores']} core{'' if facts['cores'] == 1 else 's'}"
    return (
        f"{facts['cpu']}, {cores}{gpu} ({', '.join(facts.get('matrix_extensions', []))}), "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB; at best: {roof}.{quick}"
    )
