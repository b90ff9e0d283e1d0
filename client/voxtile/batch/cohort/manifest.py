"""Reads a manifest: a table with a row for each case. Whatever is wrong with it is told, with its row, before any work.

Knows nothing of shards, and nothing of what is done with a case.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from voxtile.batch.cases import MASK_SUFFIX, CaseFiles
from voxtile.batch.cohort.case_options import given_of
from voxtile.batch.cohort.columns import CASE, Columns, columns_of
from voxtile.batch.cohort.names import check_name, checked_output, impossible
from voxtile.batch.cohort.remote_scans import Remote
from voxtile.batch.cohort.scan_cells import ScanCells
from voxtile.batch.cohort.table import LARGEST_BYTES, Table, read_bytes, read_table
from voxtile.batch.record import RECORDS
from voxtile.errors import InputError
from voxtile.io.bids import check_suffixes_as_given
from voxtile.io.channel_numbers import check_numbers_as_given
from voxtile.io.formats.all import all_files
from voxtile.io.given import NOTHING_GIVEN, Given
from voxtile.io.same_file import KnownFiles
from voxtile.outputs.base import Output
from voxtile.places.address import Address


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest.

    Attributes:
        path: its file.
        sha256: the checksum of its content.
        cases: the cases, in the order of the rows.
    """

    path: Path | Address
    sha256: str
    cases: tuple[CaseFiles, ...]

    @property
    def where(self) -> str:
        """Where its file lies, in one spelling."""
        return str(self.path) if isinstance(self.path, Address) else os.path.abspath(self.path)


@dataclass(frozen=True)
class _Rules:
    """What a row is read by."""

    place: Path
    columns: Columns
    channels: Sequence[str]
    given: Given
    scans: ScanCells
    real: Callable[[Path], Path] = field(default_factory=lambda: cache(lambda path: Path(os.path.realpath(path))))
    """Where a folder really lies; most masks lie in a few."""


def read_manifest(
    path: Path | Address,
    place: Path,
    channels: Sequence[str],
    beside: Sequence[Output] = (),
    given: Given = NOTHING_GIVEN,
    remote: Remote | None = None,
) -> Manifest:
    """Reads a manifest.

    Args:
        path: its file; names of scans in it are relative to its folder.
        place: the folder for masks.
        channels: the model's channels, by name.
        beside: what else is written for each case.
        given: what is said of all scans beside what their files say; a row may say otherwise.
        remote: reads what lies at addresses; None where nothing may.

    Raises:
        InputError: it cannot be used. The message names the first row at fault, and how many there are.
        ServerUnavailable: what lies at addresses cannot be looked at.
    """
    if isinstance(path, Address):
        assert remote is not None, "who has an address can read it"
        data = remote.store.read(path, LARGEST_BYTES)
    else:
        data = read_bytes(path)
    return parse_manifest(data, path, place, channels, beside, given, remote)


def parse_manifest(
    data: bytes,
    path: Path | Address,
    place: Path,
    channels: Sequence[str],
    beside: Sequence[Output] = (),
    given: Given = NOTHING_GIVEN,
    remote: Remote | None = None,
) -> Manifest:
    """Reads the content of the manifest `path`, as `read_manifest` does."""
    table = read_table(data, str(path), CASE)
    try:
        columns = columns_of(table.head, channels)
    except InputError as error:
        raise InputError(f"{path}: row 1: {error}") from None
    if not table.rows:
        raise InputError(f"{path}: expected a row for each case below the first, found none")
    scans = ScanCells(path.parent, remote)
    scans.look_up(cell for _, cells in table.rows for cell in itertools.compress(cells, columns.are_files))
    rows = _read_rows(table, _Rules(place, columns, channels, given, scans))
    faults = {number: case for number, case in rows if isinstance(case, InputError)}
    cases = [(number, case) for number, case in rows if isinstance(case, CaseFiles)]
    faults |= impossible(cases, place, beside) | _not_apart(cases, place, beside)
    if faults:
        first, *others = sorted(faults)
        more = f" ({len(others)} more of {len(rows)} rows have faults)" if others else ""
        raise InputError(f"{path}: row {first}: {faults[first]}{more}")
    return Manifest(path, hashlib.sha256(data).hexdigest(), tuple(case for _, case in cases))


def _read_rows(table: Table, rules: _Rules) -> list[tuple[int, CaseFiles | InputError]]:
    rows: list[tuple[int, CaseFiles | InputError]] = []
    for number, cells in table.rows:
        try:
            rows.append((number, _case(_as_wide(cells, len(table.head)), rules)))
        except InputError as error:
            rows.append((number, error.with_traceback(None)))  # which would keep all that the row was read by
    return rows


def _as_wide(cells: Sequence[str], width: int) -> list[str]:
    """The cells of a row, with those that are missing at its end."""
    if any(cells[width:]):
        raise InputError(f"expected {width} cells as in the first row, found {len(cells)}; quote cells with separators")
    return [*cells[:width], *[""] * (width - len(cells))]


def _case(cells: Sequence[str], rules: _Rules) -> CaseFiles:
    columns = rules.columns
    name, options = cells[columns.case], "" if columns.options is None else cells[columns.options].strip()
    check_name(name)
    scans = [rules.scans.file_of(cells[place]) for place in columns.files]
    files = tuple(scan if isinstance(scan, Path) else scan.file for scan in scans)
    if len(files) > 1:
        _check_order(files, rules.channels)
    output = "" if columns.output is None else cells[columns.output]
    mask = rules.place / checked_output(output) if output else rules.place / f"{name}{MASK_SUFFIX}"
    real = rules.real(mask.parent)
    if not real.is_relative_to(rules.real(rules.place)):
        raise InputError(f"expected an output in {rules.place}, found {mask}, which a link leads to {real}")
    own = given_of(options, rules.given) if options else None
    remote = {scan.file: scan for scan in scans if not isinstance(scan, Path)}
    return CaseFiles(name, files, mask, given=own, options=options, remote=remote)


def _check_order(files: Sequence[Path], channels: Sequence[str]) -> None:
    check_numbers_as_given(files, channels)
    check_suffixes_as_given(files, channels)


def _not_apart(cases: Sequence[tuple[int, CaseFiles]], place: Path, beside: Sequence[Output]) -> dict[int, InputError]:
    """The rows that have a case, a scan or an output of another row, and those that would replace a scan."""
    faults: dict[int, InputError] = {}
    names, scans, written = dict[str, dict[str, int]](), KnownFiles(), KnownFiles()
    for number, case in cases:
        alike = names.setdefault(_folded(case.name), {})
        same = (
            case.name if case.name in alike else next((one for one in alike if _one_case(place, one, case.name)), None)
        )
        if same is not None:
            also = "" if same == case.name else f" (as {same!r}, which is one name to this file system)"
            faults[number] = InputError(
                f"expected each case once, found {case.name!r} in row {alike[same]} too{also}; rename one"
            )
        alike.setdefault(case.name, number)
        for file in case.files:
            parts = all_files(file)
            known = next((known for part in parts if (known := scans.find(part))), None)
            if known is not None:
                faults.setdefault(number, InputError(f"{file}: expected each scan once, found it as {known} too"))
            for part in parts:
                scans.add(part, f"a scan of row {number}")
        for remote in case.remote.values():
            if remote.here is not None:
                scans.add(remote.here, f"a scan of row {number}")
    for number, case in cases:
        targets = list(case.targets(beside).values())
        for target in targets:
            scan, other_output = scans.find(target), written.find(target)
            if scan is not None:
                faults.setdefault(number, InputError(f"{target}: would replace {scan}; name another output"))
            elif other_output is not None:
                faults.setdefault(
                    number, InputError(f"{target}: expected each output once, found that of {other_output}; rename one")
                )
        for target in targets:
            written.add(target, f"row {number}")
    return faults


def _folded(name: str) -> str:
    """Equal for two names of cases that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _one_case(place: Path, one: str, other: str) -> bool:
    """Whether two cases would have one record, for the file system of the masks."""
    known = KnownFiles()
    known.add(place / RECORDS / f"{one}.json", one)
    return known.find(place / RECORDS / f"{other}.json") is not None
