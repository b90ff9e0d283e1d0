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
from voxtile.errors import OutputError, ServerUnavailable, VoxtileError
from voxtile.io.writing import write_image
from voxtile.outputs.probabilities import check_nnunet, write_probabilities
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
    probabilities: bool = False,
    ahead: int = 1,
    on_result: Callable[[Outcome, int, int], None] | None = None,
) -> BatchResult:
    """Segments every case under a folder, and writes summary.json and summary.csv.

    Args:
        segmenter: what segments; with `probabilities` it must keep scores.
        inputs: the folder of scans.
        outputs: the folder for masks and the summary.
        probabilities: whether to write what nnU-Net's --save_probabilities writes, CASE.npz beside each mask.
        ahead: how many scans are read and prepared while one is segmented.
        on_result: called as on_result(outcome, number, total) after each case.

    Raises:
        InputError: `inputs` cannot be used. Raised before any work, as are the next two.
        OutputError: `outputs` cannot be used.
        ModelError: the model has no such probabilities.
    """
    if probabilities:
        check_nnunet(segmenter.card)
    cases = find_cases(inputs, outputs, len(segmenter.card.input_channels))
    claim_folder(outputs, segmenter.transport.model, segmenter.changes)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(1, "voxtile-read") as reader, ThreadPoolExecutor(1, "voxtile-write") as writer:
        try:
            for number, outcome in enumerate(_outcomes(segmenter, cases, reader, writer, ahead, probabilities), 1):
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
    writer: ThreadPoolExecutor,
    ahead: int,
    probabilities: bool,
) -> Iterator[Outcome]:
    """Yields one outcome for each case, in order; a case's mask is written while the next case is segmented."""
    todo = [case for case in cases if not _finished(case, probabilities)]
    loading: dict[str, Future[LoadedScan]] = {}
    waiting: tuple[Outcome, Future[None]] | None = None
    servers_lost = ""
    for case in cases:
        if case not in todo:
            yield Outcome(case.name, "found")
            continue
        if servers_lost:
            yield Outcome(case.name, "not tried", error=servers_lost)
            continue
        place = todo.index(case)
        for later in todo[place : place + 1 + ahead]:
            if later.name not in loading:
                loading[later.name] = reader.submit(_load, segmenter, later)
        write: Callable[[], None] | None = None
        try:
            outcome, write = _segment(segmenter, case, loading.pop(case.name), probabilities)
        except ServerUnavailable as error:
            servers_lost = str(error)
            outcome = Outcome(case.name, "failed", error=servers_lost)
        except VoxtileError as error:
            outcome = Outcome(case.name, "failed", error=" ".join(str(error).split()))
        if waiting:
            yield _written(*waiting)
            waiting = None
        if write is None:
            yield outcome
        else:
            waiting = (outcome, writer.submit(write))
    if waiting:
        yield _written(*waiting)


def _finished(case: CaseFiles, probabilities: bool) -> bool:
    return case.mask.exists() and (case.probabilities.exists() or not probabilities)


def _load(segmenter: Segmenter, case: CaseFiles) -> LoadedScan:
    check_channel_numbers(case, segmenter.card.input_channels)
    return segmenter.load(list(case.files))


def _segment(
    segmenter: Segmenter, case: CaseFiles, loading: Future[LoadedScan], probabilities: bool
) -> tuple[Outcome, Callable[[], None]]:
    """The outcome, and a function that writes the case's files."""
    loaded = loading.result()
    result = segmenter.run(loaded)
    volumes = {name: label.ml for name, label in result.report.labels.items()}
    outcome = Outcome(case.name, "done", result.report.seconds.total, ml=volumes)
    return outcome, partial(_write, result, loaded if probabilities else None, case)


def _write(result: Segmentation, loaded: LoadedScan | None, case: CaseFiles) -> None:
    """Writes the mask last: a case whose mask exists is finished."""
    case.mask.parent.mkdir(parents=True, exist_ok=True)
    if loaded and result.scores is not None:
        write_probabilities(result.scores, loaded.prepared, case.probabilities)
    write_image(result.mask, case.mask)


def _written(outcome: Outcome, writing: Future[None]) -> Outcome:
    try:
        writing.result()
    except (OutputError, OSError) as error:
        return Outcome(outcome.case, "failed", outcome.seconds, str(error))
    return outcome
