"""Joins the lines of all shards into one table with a row for each case, as CSV and as lines of JSON.

Knows nothing of how a case is segmented.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile.batch.cases import MASK_SUFFIX
from voxtile.batch.cohort.journal import Line, Share, read_lines, read_shares
from voxtile.batch.record import RECORDS, Records
from voxtile.batch.summary import EXIT_SOME_FAILED, EXIT_STOPPED
from voxtile.errors import InputError, OutputError
from voxtile.io.atomic import check_replaceable
from voxtile.outputs.passport import UsedModel
from voxtile.outputs.report import Seconds, write_text

RESULTS_CSV, RESULTS_JSON = "results.csv", "results.jsonl"

FIRST = ("case", "status", "attempt", "error_kind", "error", "output", "output_sha256", "scan_sha256")
STEPS = tuple(f"{step}_seconds" for step in Seconds.model_fields)
MADE_BY = tuple(UsedModel.model_fields)
COLUMNS = (*FIRST, *STEPS, *MADE_BY, "shard", "time")

NOT_TRIED = "no run has come to this case; run its shard again"
LOST_MASK = "its mask is gone; run its shard again"
OTHER_MASK = "a run that was stopped was making its mask again; run its shard again"


@dataclass(frozen=True)
class Collected:
    """The table of a cohort.

    Attributes:
        rows: one for each case, in the order of the manifest; each has all columns that any has.
        unknown: how many cases of the manifest belong to shards that nobody has begun, so that they have no row.
        cut_off: how many lines were cut off, as when a process is killed.
    """

    rows: tuple[Mapping[str, Any], ...]
    unknown: int
    cut_off: int

    @property
    def counts(self) -> Counter[str]:
        """How many cases have each status."""
        return Counter(str(row["status"]) for row in self.rows)

    @property
    def builds(self) -> Counter[str]:
        """How many masks each build has made, in words."""
        made = (row for row in self.rows if row["status"] == "done" and row["model"])
        return Counter(
            f"{row['model']} version {row['version']}, by {row['engine']}"
            + f", certificate {str(row['certificate_sha256'])[:12]}" * bool(row["certificate_sha256"])
            for row in made
        )

    @property
    def exit_code(self) -> int:
        """0 where every case has its mask; 75 where some were not tried; 1 where some failed."""
        if self.unknown or self.counts["not tried"]:
            return EXIT_STOPPED
        return EXIT_SOME_FAILED if self.counts["failed"] else 0


def collect(place: Path, is_there: Callable[[str], bool] | None = None, records: Records | None = None) -> Collected:
    """Joins the lines of the shards that have worked in a folder.

    Args:
        place: the folder for masks.
        is_there: whether there is a mask of a name, relative to the folder; None to look into the folder.
        records: the records of the cases, where they are kept elsewhere.

    Raises:
        InputError: no shard has worked there.
        OutputError: a file of lines cannot be read.
    """
    if not place.is_dir():
        raise InputError(f"{place}: expected a folder for masks, found {'a file' if place.exists() else 'nothing'}")
    is_there = is_there or (lambda name: (place / name).is_file())
    records = records or Records(place)
    lines, cut_off = read_lines(place)
    shares = read_shares(place)
    if not lines and not shares:
        raise InputError(
            f"{place}: expected what voxtile batch --manifest records in {RECORDS}, found nothing; name another"
        )
    names, unknown = _names(shares)
    rows = [_row(name, lines.get(name), is_there, records) for name in [*names, *sorted(set(lines) - set(names))]]
    labels = sorted({key for row in rows for key in row if key not in COLUMNS})
    wide = tuple({key: row.get(key) for key in (*COLUMNS, *labels)} for row in rows)
    return Collected(wide, unknown, cut_off)


def write_collected(collected: Collected, place: Path) -> None:
    """Writes results.csv and results.jsonl into a folder.

    Raises:
        OutputError: they cannot be written, or their names have files of something else.
    """
    for name, is_ours in ((RESULTS_CSV, _is_csv), (RESULTS_JSON, _is_json)):
        _check(place / name, is_ours)
    write_text("".join(f"{json.dumps(row)}\n" for row in collected.rows), place / RESULTS_JSON)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(collected.rows[0].keys() if collected.rows else COLUMNS)
    table.writerows([_cell(value) for value in row.values()] for row in collected.rows)
    write_text(text.getvalue(), place / RESULTS_CSV)


def _names(shares: Sequence[Share]) -> tuple[list[str], int]:
    """The cases of all manifests in their order, and how many are in shards that nobody has begun.

    A manifest is known by its content: nodes and containers may see one table under several paths.
    """
    names: dict[str, None] = {}
    unknown = 0
    for manifest in dict.fromkeys(share.manifest_sha256 for share in shares):
        own = [share for share in shares if share.manifest_sha256 == manifest]
        cases = {number: name for share in own for number, name in share.cases.items()}
        unknown += max(share.total for share in own) - len(cases)
        names |= dict.fromkeys(cases[number] for number in sorted(cases))
    return list(names), unknown


def _row(case: str, line: Line | None, is_there: Callable[[str], bool], records: Records) -> dict[str, Any]:
    """The row of a case, without columns that it has no value for."""
    if line is None:
        return {"case": case, "status": "not tried", "error": NOT_TRIED}
    said = line.model_dump(include={*FIRST, "shard", "time"}) | {"scan_sha256": " ".join(line.scan_sha256)}
    if line.status == "done":
        record = records.read(case)
        is_other = record is not None and record.files.get(MASK_SUFFIX) != line.output_sha256
        if is_other or not is_there(line.output):
            error = OTHER_MASK if is_other else LOST_MASK
            return said | {"status": "not tried", "error": error, "output_sha256": ""}
    seconds = zip(STEPS, line.seconds.model_dump().values(), strict=True)
    volumes = {f"{label} ml": volume for label, volume in line.ml.items()}
    return said | dict(seconds) | (line.made_by.model_dump() if line.made_by else {}) | volumes


def _cell(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _check(path: Path, is_ours: Any) -> None:
    """Raises OutputError for a name that has something else than an earlier table."""
    try:
        ours = not path.exists() or is_ours(_first_line(path))
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise OutputError(f"{path}: expected no file, or an earlier table, found something else; move it away")
    check_replaceable(path)


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1 << 20)


def _is_csv(first: str) -> bool:
    return first.startswith(",".join(COLUMNS))


def _is_json(first: str) -> bool:
    row = json.loads(first) if first else dict.fromkeys(FIRST)
    return isinstance(row, dict) and row.keys() >= set(FIRST)


def in_words(counts: Mapping[str, int], unknown: int) -> Iterable[str]:
    """How many cases ended in which way."""
    yield from (f"{counts.get(status, 0)} {status}" for status in ("done", "failed", "not tried"))
    if unknown:
        yield f"{unknown} of shards that nobody has begun"
