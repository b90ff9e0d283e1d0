"""The cohort's figures as Markdown, in docs/performance.md. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tables import column, machine, mebibytes, number, share, table

Figures = Mapping[str, Any]
NO_RUN = "No cohort has been measured yet; `python -m bench.cohort` does."
EXPLANATION = (
    "A network that costs nothing, so that what is left is Voxtile. A case is from mask to mask, from the second tenth "
    "of the run on. Steps are medians of what the lines say; reading and writing overlap the next case's work, so "
    "their sum may exceed a case. Memory is the client's resident memory."
)
RUNS = (
    column("run", "run"), column("finished before", "found"), column("masks at its end", "masks"),
    column("to its first mask, in cases", "first_cases", number), column("exit code", "code"),
)  # fmt: skip


def cohort_block(figures: Figures | None) -> str:
    """Returns the section between its two marks."""
    if figures is None:
        return NO_RUN
    costs, cases = figures["straight"], figures["cases"]
    case_s, infer_s = costs["case_s"], costs["steps_s"]["infer"]
    rows = [{"step": step, "share": seconds / case_s} for step, seconds in costs["steps_s"].items()]
    runs = [
        {**row, "run": number_, "first_cases": row["first_s"] / case_s}
        for number_, row in enumerate(figures["killed"], 1)
    ]
    grown = costs["bytes_late"] / costs["bytes_early"]
    said = (
        f"{cases:,} scans in one manifest. A case takes {number(1000 * case_s)} ms, of which "
        f"{share(infer_s / case_s)} is waiting for scores; {number(1000 * (case_s - infer_s))} ms are beyond it. A "
        f"case of the last quarter takes {costs['slower']:.2f}× of one at the beginning, and memory there is "
        f"{mebibytes(costs['bytes_late'])}, {grown:.3f}× of that at the beginning. `voxtile manifest` took as long as "
        f"{number(figures['listed_s'] / case_s)} cases, and joining the lines as long as "
        f"{number(figures['collected_s'] / case_s)}."
    )
    killed = (
        f"Killed {len(runs) - 1} times: {figures['twice']} cases were done twice, and {figures['lost']} were lost. "
        "To the first mask counts all that a run does before: Python's start, the connection, the manifest, and the "
        "checksums of what is finished."
    )
    load = f"Load average before: {figures['machine']['load_before']:.1f}."
    steps = (column("step", "step"), column("of a case", "share", share))
    return "\n\n".join(
        [f"{machine(figures['machine'])} {load}", said, table(rows, steps), EXPLANATION, killed, table(runs, RUNS)]
    )
