"""Writes what became of each case as a table and as JSON, and decides the exit code.

Knows nothing of scans or models.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from voxtile.errors import OutputError, in_one_line
from voxtile.outputs.report import write_text

SUMMARY_JSON = "summary.json"
SUMMARY_CSV = "summary.csv"
COLUMNS = ("case", "status", "seconds", "error")

EXIT_SOME_FAILED = 1
EXIT_SERVERS_FAILED = 3
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong; the same command goes on."""

NOT_REACHED = "the run ended before it came to this case"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: its name.
        status: `found` means that an earlier run finished it; `not tried`, that the servers went away, the disk
            was full or the run ended before; `left out`, that this lies among the scans and belongs to no case.
        seconds: the seconds that it took, writing left out.
        error: why it failed, was not tried or was left out; empty otherwise.
        ml: millilitres of each label, where there is a mask.
        error_kind: of one that failed, the name of the error, such as InputError.
    """

    case: str
    status: Literal["done", "found", "failed", "not tried", "left out"]
    seconds: float = 0.0
    error: str = ""
    ml: dict[str, float] = field(default_factory=dict)
    error_kind: str = ""


def failed(case: str, error: BaseException) -> Outcome:
    """The outcome of a case that failed with `error`."""
    return Outcome(case, "failed", error=in_one_line(error), error_kind=type(error).__name__)


class Log(Protocol):
    """Takes what became of each case, and writes it down."""

    waiting: bool
    """Whether a writing has been asked for that has not begun."""

    def note(self, outcome: Outcome) -> None:
        """Takes the outcome of a case of the run."""

    def write(self) -> None:
        """Writes what is known now. Raises OutputError."""


class Summary:
    """The summary of a run: written again after each case, so that it is right whenever the run ends.

    Every case has a row from the beginning on.

    Args:
        outputs: the folder for masks.
        cases: the names of the run's cases, in order.
        others: rows of other things than the run's cases.
    """

    def __init__(self, outputs: Path, cases: Iterable[str], others: Sequence[Outcome]) -> None:
        self._outputs = outputs
        self._rows = {case: Outcome(case, "not tried", error=NOT_REACHED) for case in cases}
        self._others = others
        self._lock = threading.Lock()
        self.waiting = False

    def note(self, outcome: Outcome) -> None:
        """Takes the outcome of a case of the run."""
        with self._lock:
            self._rows[outcome.case] = outcome

    def write(self) -> None:
        """Writes what is known now. Raises OutputError."""
        self.waiting = False
        write_summary(self._outputs, self.outcomes)

    @property
    def outcomes(self) -> list[Outcome]:
        """All rows, as they are known now."""
        with self._lock:
            return [*self._rows.values(), *self._others]


def write_summary(outputs: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes `outcomes` to summary.json and summary.csv in `outputs`. Raises OutputError.

    Bytes of a name that are no UTF-8 are escaped in both files in the same way: readers take neither file otherwise.
    """
    rows = [{key: value for key, value in asdict(one).items() if key != "error_kind"} for one in outcomes]
    write_text(json.dumps(rows, indent=2) + "\n", outputs / SUMMARY_JSON)
    labels = sorted({label for outcome in outcomes for label in outcome.ml})
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([*COLUMNS, *(f"{label} ml" for label in labels)])
    for outcome in outcomes:
        volumes = [outcome.ml.get(label, "") for label in labels]
        table.writerow([outcome.case, outcome.status, f"{outcome.seconds:.3f}", outcome.error, *volumes])
    write_text(text.getvalue(), outputs / SUMMARY_CSV)


def check_summary(outputs: Path) -> None:
    """Checks that the names of the summary's files are free, or have the summary of an earlier run.

    Raises:
        OutputError: they have something else, which a summary would replace.
    """
    for name, is_ours in ((SUMMARY_JSON, _is_json), (SUMMARY_CSV, _is_csv)):
        path = outputs / name
        try:
            ours = not path.exists() or is_ours(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError):
            ours = False
        if not ours:
            raise OutputError(f"{path}: expected no file, or an earlier summary, found something else; move it away")


def exit_code(outcomes: Sequence[Outcome], *, scans_left_out: bool) -> int:
    """0 where every scan has its mask; 3 where servers or room went away; 1 where some failed or were left out."""
    if any(outcome.status == "not tried" for outcome in outcomes):
        return EXIT_SERVERS_FAILED
    failed = any(outcome.status == "failed" for outcome in outcomes)
    return EXIT_SOME_FAILED if failed or scans_left_out else 0


def _is_json(text: str) -> bool:
    rows = json.loads(text)
    return isinstance(rows, list) and all(isinstance(row, dict) and {"case", "status"} <= row.keys() for row in rows)


def _is_csv(text: str) -> bool:
    return text.startswith(",".join(COLUMNS))
