"""A folder of scans, one mask each: read ahead, go on after a broken scan, and take up again where a run ended.

A mask that is there is finished, because masks appear whole or not at all. The folder's record names the model that
made them, so that a later run with another model does not mix its masks in.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from voxtile.errors import InputError, OutputError, TileError, VoxtileError
from voxtile.io.images import write_image
from voxtile.outputs.probabilities import check_nnunet, write_probabilities
from voxtile.outputs.report import write_text
from voxtile.segmenter import Loaded, Segmentation, Segmenter

RECORD = "voxtile-batch.json"
SUMMARY_JSON = "summary.json"
SUMMARY_CSV = "summary.csv"
SUFFIXES = (".nii.gz", ".nii")
CHANNEL = re.compile(r"_(\d{4})$")
"""nnU-Net's naming: CASE_0000.nii.gz is the first channel of CASE."""

EXIT_SOME_FAILED = 1
EXIT_SERVERS_FAILED = 3


@dataclass(frozen=True)
class CaseFiles:
    """One case: its name (with folders, relative), its files (one a channel) and where its mask goes."""

    name: str
    files: tuple[Path, ...]
    mask: Path

    @property
    def probabilities(self) -> Path:
        """Where nnU-Net's probabilities go, beside the mask."""
        return self.mask.with_name(f"{_stem(self.mask)}.npz")


@dataclass
class Outcome:
    """What became of one case: `done`, `found` (finished by an earlier run), `failed` or `not tried`."""

    case: str
    status: str
    seconds: float = 0.0
    error: str = ""
    ml: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchResult:
    """All outcomes, and the exit code that they make."""

    outcomes: tuple[Outcome, ...]
    exit_code: int


def find_cases(inputs: Path, outputs: Path, channels: int) -> list[CaseFiles]:
    """The cases under `inputs` (any depth), in order of their names.

    Files that follow nnU-Net's naming are gathered by case; others are a case each. Raises InputError where there is
    no scan.
    """
    if not inputs.is_dir():
        raise InputError(
            f"{inputs}: expected a folder of NIfTI files, found {'a file' if inputs.exists() else 'nothing'}"
        )
    groups: dict[str, list[Path]] = {}
    for file in sorted(path for path in inputs.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file()):
        if outputs in file.parents or file.name.startswith("."):
            continue
        stem = _stem(file)
        name = str((file.parent / CHANNEL.sub("", stem)).relative_to(inputs))
        groups.setdefault(name, []).append(file)
    if not groups:
        raise InputError(f"{inputs}: expected NIfTI files (.nii or .nii.gz) in this folder or below, found none")
    cases = [case for name, files in groups.items() for case in _cases_of(name, files, outputs, channels)]
    return sorted(cases, key=lambda case: case.name)


def _cases_of(name: str, files: list[Path], outputs: Path, channels: int) -> Iterator[CaseFiles]:
    """A group of files is one case where it has the model's channels; plain files are a case each."""
    numbered = all(CHANNEL.search(_stem(file)) for file in files)
    if numbered and (len(files) == channels or channels > 1):
        yield CaseFiles(name, tuple(files), outputs / f"{name}.nii.gz")
        return
    for file in files:
        own = str(Path(name).with_name(_stem(file)))
        yield CaseFiles(own, (file,), outputs / f"{own}.nii.gz")


def _stem(file: Path) -> str:
    return next(file.name[: -len(suffix)] for suffix in SUFFIXES if file.name.endswith(suffix))


def _check_numbers(case: CaseFiles, channels: Sequence[str]) -> None:
    """Raises InputError for a case of several files whose numbers are not those of the channels, or that lacks some."""
    numbers = [int(found[1]) for file in case.files if (found := CHANNEL.search(_stem(file)))]
    if len(channels) == 1 or len(numbers) != len(case.files) or numbers in ([0], [*range(len(channels))]):
        return  # a lone first file may hold all channels as frames, which its reader knows
    wanted = ", ".join(f"_{number:04d} {name}" for number, name in enumerate(channels))
    found_files = ", ".join(file.name for file in case.files)
    raise InputError(f"{case.name}: expected one file for each channel ({wanted}), found {found_files}")


def segment_folder(
    segmenter: Segmenter,
    inputs: Path,
    outputs: Path,
    *,
    probabilities: bool = False,
    ahead: int = 1,
    told: Callable[[Outcome, int, int], None] | None = None,
) -> BatchResult:
    """Segments every case under `inputs` into `outputs`, and writes the summary there as JSON and CSV.

    probabilities: also write what nnU-Net's --save_probabilities writes, CASE.npz; `segmenter` has to keep scores.
    ahead: scans read and prepared while one is being segmented. told: called with each outcome, its number and the
    number of cases. Raises InputError and OutputError before any work where the folders cannot be used, ModelError
    where the model has no such probabilities.
    """
    if probabilities:
        check_nnunet(segmenter.card)
    cases = find_cases(inputs, outputs, len(segmenter.card.input_channels))
    _claim(outputs, segmenter)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(1, "voxtile-read") as reader, ThreadPoolExecutor(1, "voxtile-write") as writer:
        try:
            for number, outcome in enumerate(_outcomes(segmenter, cases, reader, writer, ahead, probabilities), 1):
                outcomes.append(outcome)
                if told:
                    told(outcome, number, len(cases))
        finally:
            _write_summary(outputs, outcomes)
    return BatchResult(tuple(outcomes), _exit_code(outcomes))


def _outcomes(
    segmenter: Segmenter,
    cases: Sequence[CaseFiles],
    reader: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
    ahead: int,
    probabilities: bool,
) -> Iterator[Outcome]:
    """One outcome a case, in order; the mask of a case is written while the next one is being segmented."""
    todo = [case for case in cases if not _finished(case, probabilities)]
    loading: dict[str, Future[Loaded]] = {}
    waiting: tuple[Outcome, Future[None]] | None = None
    gone = ""
    for case in cases:
        if case not in todo:
            yield Outcome(case.name, "found")
            continue
        place = todo.index(case)
        for later in todo[place : place + 1 + ahead]:
            if later.name not in loading and not gone:
                loading[later.name] = reader.submit(_load, segmenter, later)
        if gone:
            yield Outcome(case.name, "not tried", error=gone)
            continue
        outcome, write = _segment(segmenter, case, loading.pop(case.name), probabilities)
        gone = outcome.error if outcome.status == "gone" else ""
        outcome.status = "failed" if gone else outcome.status
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


def _load(segmenter: Segmenter, case: CaseFiles) -> Loaded:
    _check_numbers(case, segmenter.card.input_channels)
    return segmenter.load(list(case.files))


def _segment(
    segmenter: Segmenter, case: CaseFiles, loading: Future[Loaded], probabilities: bool
) -> tuple[Outcome, Callable[[], None] | None]:
    """The outcome, and what writes the case's files where there is something to write."""
    try:
        loaded = loading.result()
        result = segmenter.run(loaded)
    except TileError as error:
        return Outcome(
            case.name, "gone" if "no server has answered" in str(error) else "failed", error=str(error)
        ), None
    except VoxtileError as error:
        return Outcome(case.name, "failed", error=" ".join(str(error).split())), None
    volumes = {name: label.ml for name, label in result.report.labels.items()}
    outcome = Outcome(case.name, "done", result.report.seconds.total, ml=volumes)
    return outcome, partial(_write, result, loaded if probabilities else None, case)


def _write(result: Segmentation, loaded: Loaded | None, case: CaseFiles) -> None:
    """The mask comes last: where it is there, the case is finished."""
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


def _claim(outputs: Path, segmenter: Segmenter) -> None:
    """Notes which model fills `outputs`. Raises OutputError where another one has begun to."""
    digest = hashlib.sha256(segmenter.transport.model.card_text.encode()).hexdigest()
    mine = {"model": segmenter.card.name, "card_sha256": digest, "changes": segmenter.changes}
    record = outputs / RECORD
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        found = json.loads(record.read_text()) if record.exists() else mine
    except (OSError, json.JSONDecodeError) as error:
        raise OutputError(f"{outputs}: expected a folder to write masks to ({error})") from None
    if found != mine:
        raise OutputError(
            f"{outputs}: holds masks by {found.get('model')!r} of another build or with other options; "
            "choose another folder, or empty this one"
        )
    write_text(json.dumps(mine, indent=2) + "\n", record)


def _write_summary(outputs: Path, outcomes: Sequence[Outcome]) -> None:
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


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    if any(outcome.status == "not tried" for outcome in outcomes):
        return EXIT_SERVERS_FAILED
    return EXIT_SOME_FAILED if any(outcome.status == "failed" for outcome in outcomes) else 0
