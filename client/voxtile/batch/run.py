"""Segments a folder of scans into a folder of masks.

It reads ahead, goes on after a scan that fails, and leaves finished cases alone, so that a run that was interrupted can
be repeated: a mask that exists is finished, because masks appear whole or not at all. Knows nothing of tiles or gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxtile.batch.cases import CaseFiles, check_channel_numbers, find_cases
from voxtile.batch.record import claim_folder
from voxtile.batch.summary import Outcome, exit_code, write_summary
from voxtile.errors import ServerUnavailable, VoxtileError
from voxtile.io.writing import write_image
from voxtile.outputs.base import Output, Result
from voxtile.segmenter import LoadedScan, Segmentation, Segmenter


@dataclass(frozen=True)
class BatchResult:
    """All outcomes, and the exit code that they make."""

    outcomes: tuple[Outcome, ...]
    exit_code: int


def segment_folder(
    segmenter: Segmenter,
    inputs: Path,
    outputs: Path,
    *,
    beside: Sequence[Output] = (),
    ahead: int = 1,
    on_result: Callable[[Outcome, int, int], None] | None = None,
) -> BatchResult:
    """Segments every case under a folder, and writes summary.json and summary.csv.

    Args:
        segmenter: what segments; it must keep scores where an output needs them.
        inputs: the folder of scans.
        outputs: the folder for masks and the summary.
        beside: what else to write for each case, beside its mask and under its name.
        ahead: how many scans are read and prepared while one is segmented.
        on_result: called as on_result(outcome, number, total) after each case.

    Raises:
        InputError: `inputs` cannot be used. Raised before any work, as are the next two.
        OutputError: `outputs` cannot be used.
        VoxtileError: the model cannot have an output of `beside`.
    """
    for output in beside:
        output.check_model(segmenter.card)
    cases = find_cases(inputs, outputs, len(segmenter.card.input_channels))
    claim_folder(outputs, segmenter.transport.model, segmenter.changes)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(1, "voxtile-read") as reader, ThreadPoolExecutor(1, "voxtile-write") as writer:
        try:
            done = _outcomes(segmenter, cases, reader, _WriteBehind(writer), ahead, beside)
            for number, outcome in enumerate(done, 1):
                outcomes.append(outcome)
                if on_result:
                    on_result(outcome, number, len(cases))
        finally:
            write_summary(outputs, outcomes)
    return BatchResult(tuple(outcomes), exit_code(outcomes))


def _outcomes(
    segmenter: Segmenter,
    cases: Sequence[CaseFiles],
    reader: ThreadPoolExecutor,
    writer: _WriteBehind,
    ahead: int,
    beside: Sequence[Output],
) -> Iterator[Outcome]:
    """Yields one outcome for each case, in order; once the servers are lost, no further case is tried."""
    todo = [case for case in cases if not _finished(case, beside)]
    loading = _ReadAhead(segmenter, todo, reader, ahead)
    servers_lost = ""
    for case in cases:
        if case not in todo:
            yield from writer.add(Outcome(case.name, "found"), None)
        elif servers_lost:
            yield from writer.add(Outcome(case.name, "not tried", error=servers_lost), None)
        else:
            try:
                yield from writer.add(*_segment(segmenter, case, loading.take(case), beside))
            except ServerUnavailable as error:
                servers_lost = str(error)
                yield from writer.add(Outcome(case.name, "failed", error=servers_lost), None)
    yield from writer.finish()


class _ReadAhead:
    """Reads and prepares cases before their turn, `ahead` of them."""

    def __init__(self, segmenter: Segmenter, cases: Sequence[CaseFiles], pool: ThreadPoolExecutor, ahead: int) -> None:
        self._segmenter = segmenter
        self._cases = cases
        self._pool = pool
        self._ahead = ahead
        self._loading: dict[str, Future[LoadedScan]] = {}

    def take(self, case: CaseFiles) -> Future[LoadedScan]:
        """Returns the case, being loaded, and begins to load the ones behind it."""
        place = self._cases.index(case)
        for one in self._cases[place : place + 1 + self._ahead]:
            if one.name not in self._loading:
                self._loading[one.name] = self._pool.submit(self._load, one)
        return self._loading.pop(case.name)

    def _load(self, case: CaseFiles) -> LoadedScan:
        check_channel_numbers(case, self._segmenter.card.input_channels)
        return self._segmenter.load(list(case.files))


class _WriteBehind:
    """Writes a case's files while the next case is segmented, and then yields its outcome."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._writing: tuple[Outcome, Future[None]] | None = None

    def add(self, outcome: Outcome, write: Callable[[], None] | None) -> Iterator[Outcome]:
        """Yields the outcome of the case before, and that of this case where there is nothing to write."""
        yield from self.finish()
        if write is None:
            yield outcome
        else:
            self._writing = outcome, self._pool.submit(write)

    def finish(self) -> Iterator[Outcome]:
        """Yields the outcome of the case that is being written, once it is."""
        if self._writing is None:
            return
        (outcome, writing), self._writing = self._writing, None
        try:
            writing.result()
        except (VoxtileError, OSError) as error:
            outcome = Outcome(outcome.case, "failed", outcome.seconds, str(error))
        yield outcome


def _finished(case: CaseFiles, beside: Sequence[Output]) -> bool:
    return case.mask.exists() and all(case.beside(output.suffix).exists() for output in beside)


def _segment(
    segmenter: Segmenter, case: CaseFiles, loading: Future[LoadedScan], beside: Sequence[Output]
) -> tuple[Outcome, Callable[[], None] | None]:
    """Returns the outcome, and a function that writes the case's files. Raises ServerUnavailable."""
    try:
        loaded = loading.result()
        segmented = segmenter.run(loaded)
    except ServerUnavailable:
        raise
    except VoxtileError as error:
        return Outcome(case.name, "failed", error=" ".join(str(error).split())), None
    volumes = {name: label.ml for name, label in segmented.report.labels.items()}
    outcome = Outcome(case.name, "done", segmented.report.seconds.total, ml=volumes)
    result = segmenter.result(loaded, segmented) if beside else None  # without outputs the scan's memory is free now
    return outcome, partial(_write, segmented, result, beside, case)


def _write(segmented: Segmentation, result: Result | None, beside: Sequence[Output], case: CaseFiles) -> None:
    """Writes the mask first, so that no other output can cost it."""
    case.mask.parent.mkdir(parents=True, exist_ok=True)
    write_image(segmented.mask, case.mask)
    if result:
        for output in beside:
            output.save(result, case.beside(output.suffix))
