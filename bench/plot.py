"""The figures as a picture: how many times faster than the first row, a panel a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, THEIRS, ROW_INCHES = "#1b6ca8", "#9aa5ad", 0.3


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG of bars, one panel a workload, ours in another colour."""
    groups = [list(some) for _, some in groupby(rows, key=lambda row: row["workload"])]
    heights = [len(group) + 2 for group in groups]
    figure = Figure(figsize=(9, ROW_INCHES * sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for panel, group in zip(panels[:, 0], groups, strict=True):
        ratios = [row["ratio"] for row in group]
        colours = [OURS if row["row"].startswith("5") else THEIRS for row in group]
        bars = panel.barh([row["row"] for row in group], ratios, color=colours)
        panel.bar_label(bars, [f"{ratio:.2f}×" for ratio in ratios], padding=3, fontsize=8)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.15 * max(ratios))
        panel.set_title(str(group[0]["title"]), fontsize=8, loc="left")
    figure.supxlabel("times faster than the first row, end to end", fontsize=8)
    figure.savefig(path, dpi=120)
