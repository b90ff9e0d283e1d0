"""Segments cases one after the other; `segment_folder` does so with a folder of scans, into a folder of masks.

It reads ahead, goes on after a scan that fails in whatever way, and leaves finished cases alone, so that a run that was
interrupted can be repeated. Knows nothing of tiles or gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from voxtile.batch.cases import CaseFiles, check_channel_numbers, find_cases
from voxtile.batch.finishing import KEEP, Rules, finished_before, judge, write_case
from voxtile.batch.index.page import check_index, write_index
from voxtile.batch.index.row import Rows, check_row_installed
from voxtile.batch.record import Claim, ScanFile, claim_folder
from voxtile.batch.summary import Log, Outcome, Summary, check_summary, exit_code, failed
from voxtile.batch.walk import LeftOut
from voxtile.errors import DiskFullError, InputError, OutputError, ServerUnavailable, VoxtileError, in_one_line
from voxtile.outputs.base import Output
from voxtile.segmenter import LoadedScan, Segmenter

Write = Callable[[], Outcome]
"""Writes a case's files and returns its outcome."""

OnResult = Callable[[Outcome, int, int], None]
"""Called as on_result(outcome, number, total) after each case."""

Judged = Sequence[tuple[CaseFiles, Outcome | None]]
"""Cases in order, each with its outcome where that is known before any work."""


@dataclass(frozen=True)
class BatchResult:
    """All outcomes, what was left out, and the exit code that they make."""

    outcomes: tuple[Outcome, ...]
    exit_code: int
    left_out: tuple[LeftOut, ...] = ()


def segment_folder(
    segmenter: Segmenter,
    inputs: str | os.PathLike[str],
    outputs: str | os.PathLike[str],
    *,
    beside: Sequence[Output] = (),
    show_patient: bool = False,
    index: bool = False,
    ahead: int = 1,
    on_result: OnResult | None = None,
) -> BatchResult:
    """Segments every case under a folder, and writes summary.json and summary.csv after each.

    Args:
        segmenter: what segments; it must keep scores where an output needs them.
        inputs: the folder of scans.
        outputs: the folder for masks and the summary.
        beside: what else to write for each case, beside its mask and under its name.
        show_patient: whether outputs may name the patient.
        index: whether to write index.html, a page about all cases, at the end of the run, also an early one.
        ahead: how many scans are read and prepared while one is segmented. With a limit on memory it is none, and a
            mask is written before the next scan is read: the limit is for everything that the process holds.
        on_result: called as on_result(outcome, number, total) after each case.

    Raises:
        InputError: `inputs` cannot be used. Raised before any work, as are the next two.
        OutputError: `outputs` cannot be used; or, at the end, the summary cannot be written.
        VoxtileError: the model cannot have an output of `beside`.
    """
    inputs, outputs = Path(inputs), Path(outputs)
    for output in beside:
        output.check_model(segmenter.card)
    found = find_cases(inputs, outputs, segmenter.card.input_channels, beside)
    check_summary(outputs)
    if index:
        check_row_installed()
        check_index(outputs, found.cases, beside)
    claim = claim_folder(outputs, segmenter.transport.model, options_in_words(segmenter))
    judged = [(case, judge(case, beside, claim)) for case in found.cases]
    rows = [Outcome(one.path, "left out", error=str(one)) for one in found.left_out]
    rows += finished_before(claim.records, found.cases, outputs)
    summary = Summary(outputs, [case.name for case in found.cases], rows)
    making = Making(beside, claim, show_patient, Rows(outputs) if index else None)
    try:
        outcomes = segment_cases(segmenter, judged, making, summary, ahead, on_result)
    except BaseException:
        if index:
            with suppress(OutputError):  # the earlier error is the one to tell
                write_index(outputs, summary.outcomes, claim.records, segmenter.card)
        raise
    if index:
        write_index(outputs, summary.outcomes, claim.records, segmenter.card)
    may_be_scans = any(one.may_be_scan for one in found.left_out)
    return BatchResult(tuple(outcomes), exit_code(outcomes, scans_left_out=may_be_scans), found.left_out)


def options_in_words(segmenter: Segmenter) -> list[str]:
    """What a segmenter does otherwise than the model by itself, and what is said of all scans, in words."""
    return segmenter.changes + segmenter.options.given.in_words


@dataclass(frozen=True)
class Making:
    """What is written for each case.

    Attributes:
        beside: what else than its mask.
        claim: the folder of masks, with what fills it.
        show_patient: whether outputs may name the patient.
        rows: where rows for the page about the batch are kept; None without it.
        in_words: puts the names that the user knows into what is said of a case.
        rules: what of earlier work gives way.
    """

    beside: Sequence[Output]
    claim: Claim
    show_patient: bool = False
    rows: Rows | None = None
    in_words: Callable[[str], str] = str
    rules: Rules = KEEP


def segment_cases(
    segmenter: Segmenter, judged: Judged, making: Making, log: Log, ahead: int = 1, on_result: OnResult | None = None
) -> list[Outcome]:
    """Segments cases; however it ends, `log` has been written with all that is finished.

    Args:
        segmenter: what segments.
        judged: the cases.
        making: what is written for each.
        log: takes every outcome.
        ahead: how many cases are read ahead; see `segment_folder`.
        on_result: called after each case.

    Returns:
        The outcome of each case.

    Raises:
        OutputError: the log cannot be written.
        ServerUnavailable: what keeps it elsewhere does not answer.
    """
    work = _Work(segmenter, [case for case, known in judged if known is None], making, ahead, log)
    outcomes: list[Outcome] = []
    try:
        for number, outcome in enumerate(work.outcomes(judged), 1):
            outcomes.append(outcome)
            if on_result:
                on_result(outcome, number, len(judged))
    except BaseException:
        work.end_early()
        raise
    work.end()
    return outcomes


class _Work:
    """Reading, segmenting and writing, each of another case at the same time.

    Args:
        segmenter: what segments.
        todo: the cases to segment, in order.
        making: what is written for each.
        ahead: how many cases are read ahead.
        log: takes every outcome.
    """

    def __init__(self, segmenter: Segmenter, todo: Sequence[CaseFiles], making: Making, ahead: int, log: Log) -> None:
        self._segmenter = segmenter
        self._making = making
        self._log = log
        self._reader = ThreadPoolExecutor(1, "voxtile-read")
        self._writer = ThreadPoolExecutor(1, "voxtile-write")
        self._unread = iter(todo)
        self._alone = segmenter.options.max_ram_mib is not None
        self._ahead = 0 if self._alone else ahead
        self._loading: list[Future[_Loaded]] = []
        self._writing: tuple[Outcome, Future[Outcome]] | None = None
        self._lost = ""

    def outcomes(self, judged: Judged) -> Iterator[Outcome]:
        """Yields an outcome for each case, in order; without servers, or room for masks, no further one is tried."""
        for case, known in judged:
            write: Write | None = None
            if known is not None:
                outcome = known
            elif self._lost:
                outcome = Outcome(case.name, "not tried", error=self._lost)
            else:
                try:
                    outcome, write = self._segment(case)
                except ServerUnavailable as error:
                    self._lost = in_one_line(error)
                    outcome = failed(case.name, error)
            yield from self._written()
            if write is None:
                yield self._noted(outcome)
            else:
                self._writing = outcome, self._writer.submit(write)
                if self._alone:
                    yield from self._written()
        yield from self._written()

    def end(self) -> None:
        """Writes the log once more. Raises OutputError."""
        self._reader.shutdown()
        self._writer.shutdown()
        self._log.write()

    def end_early(self) -> None:
        """Lets the case that is being written be written, and writes the log; what is being read is given up."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        for _ in self._written():
            pass
        self._writer.shutdown()
        with suppress(VoxtileError):  # the earlier error is the one to tell
            self._log.write()

    def _segment(self, case: CaseFiles) -> tuple[Outcome, Write | None]:
        """Returns the outcome, and a function that writes the case's files. Raises ServerUnavailable."""
        loading = self._take()
        error = loading.exception()
        if isinstance(error, ServerUnavailable):
            raise error
        if error is not None:
            return failed(case.name, error), None
        try:
            loaded, scans = loading.result()
            segmented = self._segmenter.run(loaded)
        except ServerUnavailable:
            raise
        except Exception as failure:  # whatever it is, it is this case's
            return failed(case.name, failure), None
        volumes = {name: label.ml for name, label in segmented.report.labels.items()}
        outcome = Outcome(case.name, "done", segmented.report.seconds.total, ml=volumes)
        # Without outputs the scan's memory is free now.
        making = self._making
        wanted = bool(making.beside) or making.rows is not None
        result = self._segmenter.result(loaded, segmented, making.show_patient) if wanted else None
        files = (making.beside, making.claim, making.rows, making.rules)
        return outcome, partial(write_case, case, outcome, scans, segmented, result, *files)

    def _take(self) -> Future[_Loaded]:
        """Returns the next case to segment, being loaded, and begins to load the ones behind it."""
        while len(self._loading) <= self._ahead and (case := next(self._unread, None)):
            self._loading.append(self._reader.submit(self._load, case))
        return self._loading.pop(0)

    def _load(self, case: CaseFiles) -> _Loaded:
        check_channel_numbers(case, self._segmenter.card.input_channels)
        with case.at_hand() as fetched:
            files = case.all_files
            before = [file.stat() for file in files if file.exists()]
            own: dict[str, Any] = {} if case.given is None else {"given": case.given}
            loaded = self._segmenter.load(list(case.files), **own)
            now = [file.stat() for file in files]
            scans = case.scan_files(fetched)
        if [(one.st_size, one.st_mtime_ns) for one in before] != [(one.st_size, one.st_mtime_ns) for one in now]:
            raise InputError(f"{case.name}: its scan was changed while it was read; is it being copied? Run again")
        return loaded, scans

    def _written(self) -> Iterator[Outcome]:
        """Yields the outcome of the case that is being written, once it is."""
        if self._writing is None:
            return
        outcome, writing = self._writing
        error = writing.exception()  # an interruption here leaves it to be asked for again
        if isinstance(error, (ServerUnavailable, DiskFullError)):
            self._lost = in_one_line(error)
            outcome = self._noted(Outcome(outcome.case, "not tried", error=self._lost))
        else:
            outcome = self._noted(writing.result() if error is None else failed(outcome.case, error))
        self._writing = None
        yield outcome

    def _noted(self, outcome: Outcome) -> Outcome:
        """Puts an outcome into the log, which is written soon."""
        outcome = replace(outcome, error=self._making.in_words(outcome.error))
        self._log.note(outcome)
        if outcome.status != "found" and not self._log.waiting:
            self._log.waiting = True
            self._writer.submit(self._log.write)  # its error comes again at the end, if it lasts
        return outcome


_Loaded = tuple[LoadedScan, list[ScanFile]]
"""A scan, and what its files were when it was read."""
