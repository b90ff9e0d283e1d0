"""Judges what there is of a case already, and writes its files so that this judgement is right after any end of a run.

Knows nothing of how a scan is read or segmented.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxtile.batch.cases import MASK_SUFFIX, CaseFiles
from voxtile.batch.index.row import Rows
from voxtile.batch.record import CaseRecord, Claim, Records, ScanFile
from voxtile.batch.summary import Outcome, failed
from voxtile.batch.sums import sha256_of
from voxtile.errors import DiskFullError, OutputError, ServerUnavailable, in_one_line
from voxtile.io.atomic import before_naming, cannot_be
from voxtile.io.writing import write_image
from voxtile.outputs.base import Output, Result
from voxtile.outputs.passport import used_model
from voxtile.segmenter import Segmentation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What of earlier work gives way.

    Attributes:
        by_name: whether a case is its name, wherever its scan lies: the mask of another scan of this name is made
            again. False in a folder, where such a mask is kept.
        overwrite: whether every mask is made again, and what nobody has recorded is replaced.
    """

    by_name: bool = False
    overwrite: bool = False


KEEP = Rules()


def judge(case: CaseFiles, beside: Sequence[Output], claim: Claim, rules: Rules = KEEP) -> Outcome | None:
    """Says whether a case is finished, or cannot be begun, before any work.

    Args:
        case: the case.
        beside: what else is written for it.
        claim: what makes the masks of this run.
        rules: what of earlier work gives way.

    Returns:
        `found` where all its files are those that an earlier run recorded for this scan; `failed` where one of its
        names has a file that no run has recorded, or the mask of another scan; None where it is to be segmented.

    Raises:
        ServerUnavailable: what is kept elsewhere cannot be looked at.
    """
    try:
        targets = case.targets(beside)
        found = None if rules.overwrite else _judged(case, targets, claim, rules)
        if found is None:
            for path in targets.values():
                claim.place.check_replaceable(path)
        return found
    except ServerUnavailable:
        raise
    except Exception as error:  # whatever it is, it is this case's
        return failed(case.name, error)


def _judged(case: CaseFiles, targets: dict[str, Path], claim: Claim, rules: Rules) -> Outcome | None:
    record = claim.records.read(case.name)
    sums = {suffix: claim.place.checksum(case.name, suffix, path) for suffix, path in targets.items()}
    there = {suffix: found for suffix, found in sums.items() if found is not None}
    for suffix, found in there.items():
        if record is None or not record.wrote(suffix, found):
            raise _foreign(targets[suffix])
    if there and record is not None:
        if not claim.made(record, case.options):
            _log.warning(
                "%s: its mask was made by %s, in another build or with other options; it is segmented again",
                case.name,
                f"version {made.version} of {made.model}" if (made := record.made_by) else "another model",
            )
        elif _is_of(record, case):
            if all(there.get(suffix) == record.files.get(suffix, "") for suffix in targets):
                return Outcome(case.name, "found", record.seconds, ml=record.ml)
        elif rules.by_name or case.lies_where(record):
            _log.warning("%s: its scan has changed since its mask was made; it is segmented again", case.name)
        else:
            raise OutputError(
                f"{case.mask}: is the mask of another scan ({record.scans[0].uri}); choose another folder"
            )
    return None


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path}: expected no file, or what an earlier run has written, found another file: changed since, copied in "
        "part, or made by something else; it is kept; move it away to have it made again"
    )


def _is_of(record: CaseRecord, case: CaseFiles) -> bool:
    try:
        return case.is_scan_of(record)
    except OSError:
        return False  # its reader says what is wrong with it


def finished_before(records: Records, cases: Sequence[CaseFiles], outputs: Path) -> list[Outcome]:
    """Cases that are not among `cases`, and whose masks earlier runs have written and are still there."""
    present = {case.name for case in cases}
    found = []
    for name in records.cases():
        record = None if name in present else records.read(name)
        if record and _is_there(outputs / f"{name}{MASK_SUFFIX}", record):
            found.append(Outcome(name, "found", record.seconds, ml=record.ml))
    return found


def _is_there(mask: Path, record: CaseRecord) -> bool:
    try:
        return record.files.get(MASK_SUFFIX) == sha256_of(mask)
    except OSError:
        return False


def write_case(
    case: CaseFiles,
    outcome: Outcome,
    scans: Sequence[ScanFile],
    segmentation: Segmentation,
    result: Result | None,
    beside: Sequence[Output],
    claim: Claim,
    rows: Rows | None = None,
    rules: Rules = KEEP,
) -> Outcome:
    """Writes a case's mask, then what comes beside it; each file is recorded before it gets its name.

    What has come there since the case was judged, and no run has recorded, is kept, unless `rules` say otherwise.

    A row for the page about the batch is kept in `rows`; where it cannot be made, the page has none.

    Returns:
        `outcome`, or one that says what failed. A mask that is written stays, whatever else fails.

    Raises:
        OutputError: the mask cannot be written.
        ServerUnavailable: what keeps it elsewhere does not answer.
    """
    records = claim.records
    targets = case.targets(beside)
    record = _new_record(case, targets, outcome, scans, segmentation, claim)
    before = records.read(case.name)
    for suffix, path in () if rules.overwrite else targets.items():
        if (found := record.replaced.get(suffix)) and (before is None or not before.wrote(suffix, found)):
            raise _foreign(path)
    suffixes = {path: suffix for suffix, path in targets.items()}
    noted: set[Path] = set()

    def note(finished: Path, path: Path) -> None:
        if path in suffixes and path not in noted:
            record.files[suffixes[path]] = sha256_of(finished)
            records.write(case.name, record)
            noted.add(path)

    failures: list[Exception] = []
    with before_naming(note):
        _make_folder(case.mask.parent)
        write_image(segmentation.mask, case.mask)
        for output in beside:
            assert result is not None, "outputs are made from a result"
            path = case.beside(output.suffix)
            try:
                output.save(result, path)
                for file in output.files(path):
                    note(file, file)  # where an output has given a file its name by itself
            except DiskFullError:
                raise
            except Exception as error:  # whatever it is, the mask is there
                failures.append(error)
    if rows is not None:
        assert result is not None, "rows are made from a result"
        try:
            rows.measure(case.name, record.files[MASK_SUFFIX], result)
        except Exception as error:  # whatever it is, the mask is there
            _log.warning("%s: has no row in the index: %s", case.name, in_one_line(error))
    claim.place.keep(case.name, targets)
    if failures:
        said = f"{'; '.join(map(in_one_line, failures))}; the mask is written"
        return replace(outcome, status="failed", error=said, error_kind=type(failures[0]).__name__)
    return outcome


def _new_record(
    case: CaseFiles,
    targets: Mapping[str, Path],
    outcome: Outcome,
    scans: Sequence[ScanFile],
    segmentation: Segmentation,
    claim: Claim,
) -> CaseRecord:
    record = CaseRecord(scans=list(scans), seconds=outcome.seconds, ml=outcome.ml)
    if claim.is_told_by_case:
        record.steps = segmentation.report.seconds
        record.made_by = segmentation.passport and used_model(segmentation.passport)
        record.made_with = claim.digest(case.options)
    before = claim.records.read(case.name)
    record.replaced = _there(case, targets, before, claim)
    same = before and [one.sha256 for one in before.scans] == [one.sha256 for one in scans]
    if before and same and claim.made(before, case.options):
        record.files = dict(before.files)
    return record


def _there(case: CaseFiles, targets: Mapping[str, Path], before: CaseRecord | None, claim: Claim) -> dict[str, str]:
    """The checksums of what is there of a case now: its targets, and what earlier runs wrote that this one does not.

    What `before` says is not enough: a run that was killed may have recorded what never got its name.
    """
    found = {suffix: claim.place.checksum(case.name, suffix, path) for suffix, path in targets.items()}
    for suffix in {*before.files, *before.replaced} - {*targets} if before else ():
        known = claim.place.checksum(case.name, suffix, case.beside(suffix))
        found[suffix] = known if before and known and before.wrote(suffix, known) else None
    return {suffix: known for suffix, known in found.items() if known is not None}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be("made", folder, error) from None
