"""Segments a folder of scans into a folder of masks.

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

from voxtile.batch.cases import CaseFiles, check_channel_numbers, find_cases
from voxtile.batch.finishing import finished_before, judge, write_case
from voxtile.batch.index.page import check_index, write_index
from voxtile.batch.index.row import Rows, check_row_installed
from voxtile.batch.record import Records, ScanFile, claim_folder, scan_file
from voxtile.batch.summary import Outcome, Summary, check_summary, exit_code
from voxtile.batch.walk import LeftOut
from voxtile.errors import InputError, OutputError, ServerUnavailable, in_one_line
from voxtile.outputs.base import Output
from voxtile.segmenter import LoadedScan, Segmenter

Write = Callable[[], Outcome]
"""Writes a case's files and returns its outcome."""


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
    on_result: Callable[[Outcome, int, int], None] | None = None,
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
    records = claim_folder(outputs, segmenter.transport.model, segmenter.changes + segmenter.options.given.in_words)
    judged = [(case, judge(case, beside, records)) for case in found.cases]
    rows = [Outcome(one.path, "left out", error=str(one)) for one in found.left_out]
    rows += finished_before(records, found.cases, outputs)
    summary = Summary(outputs, [case.name for case in found.cases], rows)
    work = _Work(
        segmenter,
        [case for case, outcome in judged if outcome is None],
        beside,
        records,
        ahead,
        summary,
        show_patient,
        Rows(outputs) if index else None,
    )
    outcomes: list[Outcome] = []
    try:
        for number, outcome in enumerate(work.outcomes(judged), 1):
            outcomes.append(outcome)
            if on_result:
                on_result(outcome, number, len(judged))
    except BaseException:
        work.end_early()
        if index:
            with suppress(OutputError):  # the earlier error is the one to tell
                write_index(outputs, summary.outcomes, records, segmenter.card)
        raise
    work.end()
    if index:
        write_index(outputs, summary.outcomes, records, segmenter.card)
    may_be_scans = any(one.may_be_scan for one in found.left_out)
    return BatchResult(tuple(outcomes), exit_code(outcomes, scans_left_out=may_be_scans), found.left_out)


class _Work:
    """Reading, segmenting and writing, each of another case at the same time.

    Args:
        segmenter: what segments.
        todo: the cases to segment, in order.
        beside: what else to write for each.
        records: where finished cases are recorded.
        ahead: how many cases are read ahead.
        summary: takes every outcome.
        show_patient: whether outputs may name the patient.
        rows: where rows for the page about the batch are kept; None without it.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        todo: Sequence[CaseFiles],
        beside: Sequence[Output],
        records: Records,
        ahead: int,
        summary: Summary,
        show_patient: bool,
        rows: Rows | None,
    ) -> None:
        self._segmenter = segmenter
        self._beside = beside
        self._records = records
        self._summary = summary
        self._show_patient = show_patient
        self._rows = rows
        self._reader = ThreadPoolExecutor(1, "voxtile-read")
        self._writer = ThreadPoolExecutor(1, "voxtile-write")
        self._unread = iter(todo)
        self._alone = segmenter.options.max_ram_mib is not None
        self._ahead = 0 if self._alone else ahead
        self._loading: list[Future[_Loaded]] = []
        self._writing: tuple[Outcome, Future[Outcome]] | None = None

    def outcomes(self, judged: Sequence[tuple[CaseFiles, Outcome | None]]) -> Iterator[Outcome]:
        """Yields one outcome for each case, in order; once the servers are lost, no further case is tried."""
        servers_lost = ""
        for case, known in judged:
            write: Write | None = None
            if known is not None:
                outcome = known
            elif servers_lost:
                outcome = Outcome(case.name, "not tried", error=servers_lost)
            else:
                try:
                    outcome, write = self._segment(case)
                except ServerUnavailable as error:
                    servers_lost = in_one_line(error)
                    outcome = Outcome(case.name, "failed", error=servers_lost)
            yield from self._written()
            if write is None:
                yield self._noted(outcome)
            else:
                self._writing = outcome, self._writer.submit(write)
                if self._alone:
                    yield from self._written()
        yield from self._written()

    def end(self) -> None:
        """Writes the summary once more. Raises OutputError."""
        self._reader.shutdown()
        self._writer.shutdown()
        self._summary.write()

    def end_early(self) -> None:
        """Lets the case that is being written be written, and writes the summary; what is being read is given up."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        for _ in self._written():
            pass
        self._writer.shutdown()
        with suppress(OutputError):  # the earlier error is the one to tell
            self._summary.write()

    def _segment(self, case: CaseFiles) -> tuple[Outcome, Write | None]:
        """Returns the outcome, and a function that writes the case's files. Raises ServerUnavailable."""
        loading = self._take()
        error = loading.exception()
        if isinstance(error, ServerUnavailable):
            raise error
        if error is not None:
            return Outcome(case.name, "failed", error=in_one_line(error)), None
        try:
            loaded, scans = loading.result()
            segmented = self._segmenter.run(loaded)
        except ServerUnavailable:
            raise
        except Exception as failure:  # whatever it is, it is this case's
            return Outcome(case.name, "failed", error=in_one_line(failure)), None
        volumes = {name: label.ml for name, label in segmented.report.labels.items()}
        outcome = Outcome(case.name, "done", segmented.report.seconds.total, ml=volumes)
        # Without outputs the scan's memory is free now.
        wanted = bool(self._beside) or self._rows is not None
        result = self._segmenter.result(loaded, segmented, self._show_patient) if wanted else None
        files = (self._beside, self._records, self._rows)
        return outcome, partial(write_case, case, outcome, scans, segmented, result, *files)

    def _take(self) -> Future[_Loaded]:
        """Returns the next case to segment, being loaded, and begins to load the ones behind it."""
        while len(self._loading) <= self._ahead and (case := next(self._unread, None)):
            self._loading.append(self._reader.submit(self._load, case))
        return self._loading.pop(0)

    def _load(self, case: CaseFiles) -> _Loaded:
        check_channel_numbers(case, self._segmenter.card.input_channels)
        files = case.all_files
        before = [file.stat() for file in files if file.exists()]
        loaded = self._segmenter.load(list(case.files))
        scans = [scan_file(file) for file in files]
        if [(one.st_size, one.st_mtime_ns) for one in before] != [(one.size, one.mtime_ns) for one in scans]:
            raise InputError(f"{case.name}: its scan was changed while it was read; is it being copied? Run again")
        return loaded, scans

    def _written(self) -> Iterator[Outcome]:
        """Yields the outcome of the case that is being written, once it is."""
        if self._writing is None:
            return
        outcome, writing = self._writing
        error = writing.exception()  # an interruption here leaves it to be asked for again
        if error is None:
            outcome = self._noted(writing.result())
        else:
            outcome = self._noted(replace(outcome, status="failed", error=in_one_line(error), ml={}))
        self._writing = None
        yield outcome

    def _noted(self, outcome: Outcome) -> Outcome:
        """Puts an outcome into the summary, which is written soon."""
        self._summary.note(outcome)
        if outcome.status != "found" and not self._summary.waiting:
            self._summary.waiting = True
            self._writer.submit(self._summary.write)  # its error comes again at the end, if it lasts
        return outcome


_Loaded = tuple[LoadedScan, list[ScanFile]]
"""A scan, and what its files were when it was read."""
