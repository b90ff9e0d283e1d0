"""The figures as Markdown: the page of one run, and the README's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

SCAN_COLUMNS: tuple[Column, ...] = (
    ("way", lambda row: row["row"]),
    ("ratio", lambda row: times(row["ratio"])),
    ("seconds", lambda row: seconds(row)),
    ("engine s", lambda row: number(row.get("engine_seconds"))),
    ("wall / engine", lambda row: number(row.get("overhead"))),
    ("peak memory", lambda row: mebibytes(row["peak_rss_bytes"])),
    ("Dice min", lambda row: f"{row['dice_min']:.4f}"),
    ("changed", lambda row: share(row["changed_fraction"])),
    ("Dice to nnU-Net's", lambda row: "" if "dice_min_to_nnunet" not in row else f"{row['dice_min_to_nnunet']:.4f}"),
)
README_COLUMNS = tuple(column for column in SCAN_COLUMNS if column[0] not in ("engine s",))
PART_COLUMNS: tuple[Column, ...] = (
    ("way", lambda row: row["way"]),
    ("ratio", lambda row: times(row["ratio"])),
    ("seconds", lambda row: seconds(row)),
    ("wall / engine", lambda row: number(row.get("overhead"))),
    ("memory", lambda row: mebibytes(row.get("peak_rss_bytes"))),
    ("predicted", lambda row: mebibytes(row.get("predicted_peak_bytes"))),
    ("error", lambda row: "" if row.get("error") is None else f"{row['error']:.1e}"),
    ("note", lambda row: row.get("note", "")),
)
ENGINE_COLUMNS: tuple[Column, ...] = (
    ("engine", lambda row: row["engine"]),
    ("precision", lambda row: row["precision"]),
    ("batch", lambda row: str(row["batch"])),
    ("ratio", lambda row: times(row["ratio"])),
    ("seconds a ROI", lambda row: number(row["seconds_per_roi"])),
    ("Dice min", lambda row: f"{row['dice_min']:.4f}"),
    ("changed", lambda row: share(row["changed_fraction"])),
)
AGREEMENT = (
    "Ratios are to the first row of each table. Seconds run from the scan's file to the mask's, medians of "
    "repetitions that took turns. Peak memory counts everything that a way needs, a server included. Dice and changed "
    "voxels are against the first row's mask; where a network's weights were not trained they say how far two ways "
    "agree, and nothing about the mask."
)


def page(facts: Row, scans: Sequence[Row], parts: Sequence[Row], engines: Sequence[Row]) -> str:
    """bench.md."""
    blocks = ["# Benchmark", machine(facts), AGREEMENT]
    blocks += grouped(scans, "workload", SCAN_COLUMNS, 2)
    blocks += ["## Parts", *grouped(parts, "part", PART_COLUMNS, 3)] if parts else []
    blocks += ["## Engines", *grouped(engines, "network", ENGINE_COLUMNS, 3)] if engines else []
    if facts.get("left_out"):
        blocks += ["## Left out", left_out(facts["left_out"])]
    return "\n\n".join(blocks) + "\n"


def grouped(rows: Sequence[Row], key: str, columns: Sequence[Column], level: int) -> list[str]:
    """A heading and a table for each run of rows with the same `key`."""
    blocks = []
    for name, some in groupby(rows, key=lambda row: row[key]):
        group = list(some)
        blocks += [f"{'#' * level} {group[0].get('title', name)}", table(group, columns)]
    return blocks


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """A Markdown table; columns that are empty in every row are left out."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    shown = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    lines = [[columns[index][0] for index in shown], ["---"] * len(shown)]
    lines += [[row[index] for index in shown] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(facts: Row) -> str:
    """One paragraph: what was measured on, and what that machine can do at best."""
    extensions = ", ".join(facts.get("matrix_extensions", []))
    roof = ", ".join(f"{name} {value:g}" for name, value in facts.get("roofline", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items() if version)
    quick = " A quick run: small scans, few repetitions." if facts.get("quick") else ""
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    return (
        f"{facts['cpu']}, {facts['cores']} cores{gpu} ({extensions}), "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB; at best: {roof}.{quick} {versions}."
    )


def left_out(rows: Iterable[Row]) -> str:
    return "\n".join(f"- {row['where']}: {row['row']}: {row['reason']}" for row in rows)


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"


def seconds(row: Row) -> str:
    """Median, and the fastest and slowest where there were several."""
    median = number(row["seconds"])
    if row.get("runs", 1) < 2:
        return median
    return f"{median} ({number(row['seconds_low'])}–{number(row['seconds_high'])})"


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f} MiB"


def share(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-4 else f"{100 * value:.3g} %"
