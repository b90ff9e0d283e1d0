"""The students' figures as Markdown, in docs/performance.md. Knows nothing of how they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from ..tables import Row, column, machine, number, share, table

Figures = Mapping[str, Any]
"""Of one run: `machine`, `trainings` (by name) and `ladders` (rows)."""
NO_RUN = "No student has been measured yet; `python -m bench.students` makes both and measures them."
AIMED_DICE = 0.97
AIMED_GAIN = {"swinunetr": 10, "plainconvunet": 2.5}
"""End to end, on top of the teacher's best engine."""
EXPLANATION = (
    "All rungs of a ladder took turns, from the scan's file to the mask's; each served rung has a Triton server of its "
    "own. A tile's milliseconds are the compute time of the network alone, by the server's own statistics. `of its "
    "limit` divides the operations of a tile, as PyTorch counts them, in that time by the rate of large fp32 products "
    "in PyTorch on the same machine. An engine may do with fewer operations, as by composed upsampling, and int8 has a "
    "higher limit, so it can be more than all of it. Dice and changed voxels are against the first "
    "rung's mask: agreement with the teacher, not accuracy. MB is what the server loads; of PyTorch, the weights in "
    "fp32. The share of a step is its part of the whole gain, on a logarithmic scale."
)


def _spread(row: Row) -> str:
    if row["runs"] < 2:
        return number(row["seconds"])
    return f"{number(row['seconds'])} ({number(row['seconds_low'])}–{number(row['seconds_high'])})"


def _dice(row: Row) -> str:
    return ", ".join(f"{value:.3f}" for value in row["dice"].values())


LADDER_COLUMNS = (
    column("rung", "row"), column("ms a tile", "ms_per_tile", number), column("of its limit", "limit", share),
    ("seconds a scan", _spread), column("gain", "ratio", "{:.1f}×".format),
    column("share of the gain", "step", "{:.0%}".format), ("Dice", _dice),
    column("changed", "changed_fraction", share), column("MB", "bytes", lambda value: number(value / 1e6)),
    column("parameters", "parameters", "{:,}".format), column("GFLOP a tile", "gflop", number),
)  # fmt: skip
LABEL_COLUMNS = (
    column("student", "student"), column("label", "label"), column("Dice", "dice_min", "{:.4f}".format),
    column("95 % Hausdorff distance, mm", "hausdorff_95_mm_max", number),
    column("volume", "volume_difference_percent_max", "{:.1f} %".format),
    column("changed voxels of the scan", "changed_fraction", share),
)  # fmt: skip


def students_block(figures: Figures | None) -> str:
    """Returns the section between its two marks."""
    if figures is None:
        return NO_RUN
    roof = figures["machine"]["roofline"]["matmul fp32 GFLOP/s"]
    parts = [f"{machine(figures['machine'])} Load average before the ladders: {figures['machine']['load_before']:.1f}."]
    parts += [figures["remark"]] if figures.get("remark") else []
    if figures["trainings"]:
        parts += [*map(_training, figures["trainings"].values()), table(_labels(figures["trainings"]), LABEL_COLUMNS)]
    for name in dict.fromkeys(row["workload"] for row in figures["ladders"]):
        rows = with_steps([row for row in figures["ladders"] if row["workload"] == name], roof)
        parts += [f"#### {rows[0]['title']}", table(rows, LADDER_COLUMNS), gains(rows)]
    return "\n\n".join([*parts, EXPLANATION])


def with_steps(rows: Sequence[Row], roof: float) -> list[dict[str, Any]]:
    """Returns the rows of a ladder with `limit`, and with `step`: the part of the gain that each rung adds.

    A rung that is slower than the one before adds less than nothing. Of several engines at one precision only the
    fastest is a step.
    """
    steps: dict[str, float | None] = dict.fromkeys(row["row"] for row in rows)
    taken = [min(some, key=lambda row: row["seconds"]) for _, some in groupby(rows, key=_precision)]
    whole = math.log(taken[0]["seconds"] / taken[-1]["seconds"])
    for before, after in pairwise(taken):
        steps[after["row"]] = math.log(before["seconds"] / after["seconds"]) / whole if whole else None
    return [{**row, "limit": row["gflops"] / roof, "step": steps[row["row"]]} for row in rows]


def _precision(row: Row) -> list[str]:
    """Returns whose rung it is, and in which precision, without the engine."""
    return list(row["row"].split(", ")[:2])


def gains(rows: Sequence[Row]) -> str:
    """Returns two sentences: how far the fastest rung is ahead of the first one, and of the teacher's best engine."""
    students = [row for row in rows if row["row"].startswith("student")]
    engines = [row for row in rows[1:] if row["row"].startswith("teacher")]
    if not students or not engines:
        return ""
    return (
        f"From the first rung to the student at its fastest: {_gains(rows[:1], students)}. On top of the teacher's "
        f"best engine: {_gains(engines, students)}; aimed at was {AIMED_GAIN[rows[0]['workload']]:g}× end to end."
    )


def _gains(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Returns the gain of the fastest of some rungs over the fastest of others, a tile and end to end."""
    said = []
    for key, unit, what in (("ms_per_tile", "ms", "a tile"), ("seconds", "s", "a scan, end to end")):
        one, other = (min(some, key=lambda row: row[key]) for some in (before, after))
        said.append(
            f"{number(one[key])} → {number(other[key])} {unit} {what}, {one[key] / other[key]:.1f}× "
            f"({one['row']} → {other['row']})"
        )
    return "; ".join(said)


def _training(made: Mapping[str, Any]) -> str:
    """Returns a sentence on how a student was made."""
    told = made["training"]
    return (
        f"**{made['title']}**: {made['wall_seconds'] / 60:.0f} minutes in all, for {told['patches']} patches that "
        f"{made['teacher_engine']} labelled, {told['steps']} steps of training in {told['seconds'] / 60:.0f} minutes "
        f"({told['device']}; start: {told['start']}), and the judgement. Lowest Dice of a label: "
        f"{made['dice_min']:.4f}; aimed at was {AIMED_DICE:g}. `{made['command']}`"
    )


def _labels(trainings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"student": training["title"], "label": label, "changed_fraction": training["changed_fraction"], **figures}
        for training in trainings.values()
        for label, figures in training["labels"].items()
    ]
