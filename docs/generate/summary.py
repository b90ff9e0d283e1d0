"""The README's table of six rows: each workload before and with Voxtile. Knows nothing of how figures were measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from docs.generate.markdown import table

Row = Mapping[str, Any]

PREDICTOR = "6 nnU-Net's own predictor"
TITLES = {
    "unet": "UNet, trained; brain MR",
    "swinunetr": "SwinUNETR 24, not trained; brain MR",
    "swinunetr half air": "the same, half of the scan is air",
    "nnunet": "nnU-Net PlainConvUNet; brain MR",
    "nnunet-ct": "nnU-Net PlainConvUNet, 25 labels; made-up CT 512×512×200",
}
"""The workloads of the summary, in order, with short names."""

HEAD = ("network and scan", "before", "best other way", "Voxtile fp32", "Voxtile fastest", "peak memory", "Dice")
NOTES = (
    '"Before" is MONAI\'s sliding window in fp32 PyTorch; for nnU-Net it is its own predictor. "Best other way" is the '
    "fastest of bf16 autocast, flash attention, and MONAI's sliding window over ONNX Runtime or OpenVINO in any "
    "precision. Seconds run from the scan's file to the mask's file, and × says how many times faster than before. "
    "Peak memory is before and with the fastest Voxtile, server included. Dice is the smallest of any label, fastest "
    "Voxtile against before: it says how far two ways agree, and nothing about the mask."
)


@dataclass(frozen=True)
class Way:
    """One way from a scan to a mask: what it is called in the results, seconds, bytes, and the smallest Dice."""

    name: str
    seconds: float
    memory: float
    dice: float | None


@dataclass(frozen=True)
class Line:
    """One line of the summary: a workload, and its ways by their column; a column may be missing."""

    title: str
    ways: Mapping[str, Way]

    def speed(self, column: str) -> float:
        """How many times faster a way is than the first one."""
        return self.ways["before"].seconds / self.ways[column].seconds


def lines(published: Mapping[str, Any]) -> list[Line]:
    """Returns the lines of the summary: one for each workload that was measured, and one for memory."""
    found = []
    for workload, title in TITLES.items():
        rows = [row for row in published["scans"] if row["workload"] == workload]
        ways = dict(_ways(rows))
        if "before" in ways:
            found.append(Line(title, ways))
    return found + list(_memory(published.get("parts", [])))


def as_table(summary: Sequence[Line]) -> str:
    """Returns the summary as a Markdown table."""
    return table(HEAD, (_cells(line) for line in summary))


def _ways(rows: Sequence[Row]) -> Iterator[tuple[str, Way]]:
    """Yields the columns that a workload has, in the table's order."""
    by_name = {str(row["row"]): row for row in rows}
    predicted = PREDICTOR in by_name
    before = by_name.get(PREDICTOR) or next((row for name, row in by_name.items() if name.startswith("1 ")), None)
    if before is None:
        return
    key = "dice_min_to_nnunet" if predicted else "dice_min"
    yield "before", _way(before, key)
    others = [row for name, row in by_name.items() if name[0] in "124" and row is not before]
    if others:
        yield "best other way", _way(min(others, key=_seconds), key)
    if "5 Voxtile fp32" in by_name:
        yield "Voxtile fp32", _way(by_name["5 Voxtile fp32"], key)
    yield "Voxtile fastest", _way(min((row for name, row in by_name.items() if name[0] == "5"), key=_seconds), key)


def _memory(parts: Sequence[Row]) -> Iterator[Line]:
    """Yields the line of the memory measurement with the most scores."""
    measured = [row for row in parts if row["section"] == "memory"]
    if not measured:
        return
    part = measured[-1]["part"]
    rows = [row for row in measured if row["part"] == part]
    title = f"a network that costs nothing; {str(part).removeprefix('peak memory, ')}; memory over the idle process"
    yield Line(title, {"before": _way(rows[0], ""), "Voxtile fp32": _way(rows[-1], "")})


def _way(row: Row, dice: str) -> Way:
    name = str(row.get("row") or row["way"])
    return Way(re.sub(r"^\d\w? (\+ )?", "", name), float(row["seconds"]), float(row["peak_rss_bytes"]), row.get(dice))


def _seconds(row: Row) -> float:
    return float(row["seconds"])


def _cells(line: Line) -> list[str]:
    last = line.ways[list(line.ways)[-1]]
    times = [
        f"{line.ways[column].seconds:.3g} s" + ("" if column == "before" else f", {line.speed(column):.1f}×")
        if column in line.ways
        else ""
        for column in HEAD[1:5]
    ]
    memory = " → ".join(f"{way.memory / 2**20:,.0f}" for way in (line.ways["before"], last))
    return [line.title, *times, f"{memory} MiB", "" if last.dice is None else f"{last.dice:.3f}"]
