"""Writes what became of each case as a table and as JSON, and decides the exit code.

Knows nothing of scans or models.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from voxtile.outputs.report import write_text

SUMMARY_JSON = "summary.json"
SUMMARY_CSV = "summary.csv"

EXIT_SOME_FAILED = 1
EXIT_SERVERS_FAILED = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: its name.
        status: `found` means that an earlier run finished it; `not tried`, that the servers went away before.
        seconds: the seconds that it took, writing left out.
        error: why it failed or was not tried; empty otherwise.
        ml: millilitres of each label.
    """

    case: str
    status: Literal["done", "found", "failed", "not tried"]
    seconds: float = 0.0
    error: str = ""
    ml: dict[str, float] = field(default_factory=dict)


def write_summary(outputs: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes `outcomes` to summary.json and summary.csv in `outputs`. Raises OutputError."""
    rows = [asdict(outcome) for outcome in outcomes]
    write_text(json.dumps(rows, indent=2) + "\n", outputs / SUMMARY_JSON)
    labels = sorted({label for outcome in outcomes for label in outcome.ml})
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["case", "status", "seconds", "error", *(f"{label} ml" for label in labels)])
    for outcome in outcomes:
        volumes = [outcome.ml.get(label, "") for label in labels]
        table.writerow([outcome.case, outcome.status, f"{outcome.seconds:.3f}", outcome.error, *volumes])
    write_text(text.getvalue(), outputs / SUMMARY_CSV)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 where every case has its mask; 3 where the servers went away; 1 where some cases failed."""
    if any(outcome.status == "not tried" for outcome in outcomes):
        return EXIT_SERVERS_FAILED
    return EXIT_SOME_FAILED if any(outcome.status == "failed" for outcome in outcomes) else 0
