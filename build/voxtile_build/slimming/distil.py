"""Distillation: teacher -> scans -> student -> pool of answers -> training -> agreement -> what comes out.

Each part is a room or a module of its own; this one calls them in order, and goes on where an interrupted run ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from voxtile_build.arrays import Array
from voxtile_build.build import Published, build
from voxtile_build.certificate.distillation import Scans, student_of
from voxtile_build.certificate.distillation import Teacher as TeacherFacts
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.samples import Scan
from voxtile_build.hashing import bytes_sha256
from voxtile_build.progress import Step, silent, teller
from voxtile_build.slimming.given.looked_at import LookedAt
from voxtile_build.slimming.given.padded import Padded
from voxtile_build.slimming.judging.agreement import measure_agreement, student_runner
from voxtile_build.slimming.judging.cost import costs
from voxtile_build.slimming.modality import check_answers, check_scans
from voxtile_build.slimming.outcome import Made, Outcome, write_outcome
from voxtile_build.slimming.plan import Options, facts_of
from voxtile_build.slimming.pool import Pool, wanted_patches
from voxtile_build.slimming.request import Request, read_request
from voxtile_build.slimming.scans import (
    TrainingScan,
    block,
    find_scans,
    held_out_region,
    persons_in_words,
    read,
    split,
    train_region,
)
from voxtile_build.slimming.teacher import Teacher, open_teacher
from voxtile_build.slimming.training import (
    Budget,
    Progress,
    Trained,
    TrainingPlan,
    TrainingStopped,
    patch_seconds,
    train,
)
from voxtile_build.slimming.work_folder import WorkFolder, claimed, finish_removal, work_folder
from voxtile_build.spec.distillation import MIN_DICE

LEAST_TRAINING = 0.5
"""Share of a budget in seconds that is left for training, however long labelling takes."""

Told = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True)
class Distilled:
    """What a distillation made.

    Attributes:
        outcome: the files that were written.
        made: what they hold.
        refused: why the student is not fit to be published; None where it is.
        published: what was built into a repository, where that was asked for.
    """

    outcome: Outcome
    made: Made
    refused: AcceptanceError | None = None
    published: Published | None = None


def distil(
    asked: Options,
    progress: Callable[[str], Step] = lambda _: silent,
    told: Told = lambda _: None,
    informed: Told = lambda _: None,
) -> Distilled:
    """Train a student on what its teacher answers to scans without labels.

    Args:
        asked: the options.
        progress: makes, from the student's name, what is told what the run is doing.
        told: gets what the user should know, such as scans that are left out.
        informed: gets what all is well with, such as how many persons the scans are of.

    Raises:
        BuildError: of the kind that says what is wrong. Before anything was made, nothing is left; else what took time
            stays, for a run with `resume`.
    """
    request = read_request(asked)
    name, step = request.student.name, progress(request.student.name)
    looked_at, padded = LookedAt(work_folder(asked.output, name)), Padded(request.teacher.spec)
    for warning in request.warnings:
        told(warning)
    with step("look at the scans"):
        scans = _parted(request, looked_at, told, informed)
    finish_removal(asked.output, name)
    with _threads(asked.threads), claimed(asked.output, name) as work:
        work.hold_to(_facts(request, scans))
        looked_at.save(work.path)
        with _teacher(request, work, step) as teacher:
            pool = _pool(request, scans, teacher, work)
            _label(request, scans, teacher, pool, work, step, padded)
            _check_answers(request, teacher, pool, told)
            trained = _trained(request, teacher, pool, work, step, told)
            made = _judged(request, scans, teacher, pool, trained, step, padded)
            padded.tell(informed)
            overwrite = work.begin_placing() or asked.overwrite
            outcome = write_outcome(made, asked.output, work.path, overwrite=overwrite)
    try:
        student_of(outcome.spec)
    except AcceptanceError as error:
        return Distilled(outcome, made, refused=error)
    if asked.repository is None:
        return Distilled(outcome, made)
    return Distilled(outcome, made, published=build(outcome.spec, asked.repository, step=step))


@dataclass(frozen=True)
class Parted:
    """The scans.

    Attributes:
        training: to train on.
        held_out: to judge on.
    """

    training: tuple[TrainingScan, ...]
    held_out: tuple[TrainingScan, ...]

    @property
    def by_block(self) -> bool:
        """Whether both are the same scans, of each of which a block is held out."""
        return self.training == self.held_out


def _parted(request: Request, looked_at: LookedAt, told: Told, informed: Told) -> Parted:
    asked = request.asked
    scans = find_scans(asked.scans, request.teacher.spec, told, looked_at)
    informed(persons_in_words(scans))
    training, held_out = split(scans, asked.held_out, asked.seed, alone=asked.one_scan)
    if not asked.any_modality:
        check_scans(scans, request.teacher.spec)
    if training == held_out and len(training) > 1:  # what is judged on a block speaks of one scan
        told(f"--one-scan: {len(training)} scans belong to one person; one of them is taken")
        training = held_out = (min(training, key=lambda scan: scan.sha256),)  # whatever it is called
    parted = Parted(training, held_out)
    if asked.one_scan and not parted.by_block:
        told(f"--one-scan: not needed for scans of several persons; {len(held_out)} of {len(scans)} are held out whole")
    return parted


def _facts(request: Request, scans: Parted) -> dict[str, object]:
    """What the run must hold to if it is to go on."""
    sides = {"training": scans.training, "held out": scans.held_out}
    # By digests, because names may be those of patients, and may change.
    known = {scan.sha256: side for side, found in sides.items() for scan in found}
    return facts_of(request.asked, request.teacher.spec, request.teacher_weights_sha256, request.student, known)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _teacher(request: Request, work: WorkFolder, step: Step) -> Teacher:
    asked = request.asked
    return open_teacher(
        asked.teacher,
        folder=work.path,
        repository=asked.repository,
        **asdict(request.choice),
        threads=asked.threads or 0,
        step=step,
    )


def _pool(request: Request, scans: Parted, teacher: Teacher, work: WorkFolder) -> Pool:
    """The pool, of as many patches as suit the budget. Their number is decided once, because it depends on a clock."""
    asked = request.asked

    def count() -> float:
        if asked.steps is not None:
            wanted = wanted_patches(asked.steps, None, request.batch)
        else:
            replay = patch_seconds(request.network, teacher.spec.roi_shape, request.batch)
            wanted = wanted_patches(None, asked.seconds, request.batch, teacher.tile_seconds, replay)
        return min(max(wanted, len(scans.training)), request.most_patches)

    patches = int(work.decided("patches", count))
    key = " ".join([teacher.weights_sha256, teacher.engine, *(scan.sha256 for scan in scans.training)])
    return Pool(
        work.path / "pool", teacher.spec, patches, asked.seed, kind=teacher.kind, key=bytes_sha256(key.encode())
    )


def _label(
    request: Request, scans: Parted, teacher: Teacher, pool: Pool, work: WorkFolder, step: Step, padded: Padded
) -> None:
    readers = [padded.noting(partial(_to_train_on, request, scans, scan)) for scan in scans.training]
    begun = work.holds_work
    with step(f"label {pool.count} patches"):
        tell = teller()

        def labelled(done: int, count: int) -> None:
            work.holds_work = True
            tell(done / count)

        pool.label(readers, teacher, mirrorings=teacher.mirrorings, begun=begun, told=labelled)
    teacher.rest()


def _to_train_on(request: Request, scans: Parted, scan: TrainingScan) -> Scan:
    whole = read(scan, request.teacher.spec)
    return block(whole, train_region(whole)) if scans.by_block else whole


def _trained(request: Request, teacher: Teacher, pool: Pool, work: WorkFolder, step: Step, told: Told) -> Trained:
    """Trains the student; of a training that diverges, the last good weights are judged."""
    asked, folder = request.asked, work.path / "training"
    seconds = None
    if asked.seconds is not None:
        labelling = pool.count * work.decided("tile", lambda: teacher.tile_seconds)
        seconds = max(asked.seconds - labelling, LEAST_TRAINING * asked.seconds)
    flips = pool.flips(teacher.mirrorings)
    plan = TrainingPlan(Budget(asked.steps, seconds), request.batch, asked.learning_rate, seed=asked.seed, flips=flips)
    network = request.network
    with step("train"):
        tell = teller()

        def share(progress: Progress) -> None:
            tell(progress.step / asked.steps if asked.steps else progress.seconds / (seconds or 1))

        regions = request.student.output.regions
        try:
            trained = train(network, pool, plan, folder, kind=teacher.kind, regions=regions, told=share)
        except TrainingStopped as stopped:
            if stopped.trained is None or not stopped.is_over:
                raise
            told(f"{request.student.name}: {stopped}")
            trained = stopped.trained
            network.load_state_dict(trained.state_dict)
    network.cpu().eval()  # it is judged as it is certified
    return trained


class _Answers(Sequence[Array]):
    """The teacher's answers in a pool, [class, *roi] each, read when they are asked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __len__(self) -> int:
        return self._pool.count

    def __getitem__(self, index: Any) -> Any:
        return self._pool.batch([index], [()])[1][0]


def _check_answers(request: Request, teacher: Teacher, pool: Pool, told: Told) -> None:
    if not request.asked.any_modality:
        check_answers(_Answers(pool), teacher.spec, teacher.kind, teacher.certified_scores(), told)


def _judged(
    request: Request, scans: Parted, teacher: Teacher, pool: Pool, trained: Trained, step: Step, padded: Padded
) -> Made:
    """What was made, with its agreement on the scans that were held out, and its cost."""
    network, student, origin = request.network, request.student, teacher.spec.weights or teacher.spec.network
    with step("compare with the teacher"):
        agreement = measure_agreement(
            teacher.scoring,
            teacher.run,
            student_runner(network, student, teacher.scoring),
            [padded.noting(partial(_to_judge_on, request, scans, scan)) for scan in scans.held_out],
            block=scans.by_block,
            batch=teacher.scoring.serving.max_batch_size,
            told=teller(),
        )
    with step("measure what a tile costs"):
        theirs, ours = costs(teacher, network, student)
    return Made(
        student=student,
        network=network,
        teacher=TeacherFacts(
            name=teacher.spec.name,
            weights_sha256=teacher.weights_sha256,
            networks=len(teacher.networks),
            mirrored_passes=len(teacher.mirrorings),
            engine=teacher.engine,
            precision=teacher.precision,
            certificates=teacher.certificates,
            cost=theirs,
        ),
        scans=Scans(
            trained_on=tuple(scan.sha256 for scan in scans.training),
            held_out=tuple(scan.sha256 for scan in scans.held_out),
        ),
        agreement=agreement,
        cost=ours,
        options=_options(request, scans),
        training={
            "start": request.start,
            "patches": pool.count,
            "mirrored along axes": list(pool.flips(teacher.mirrorings)),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "device": trained.device,
        },
        log="".join(f"{json.dumps({'step': step, 'loss': loss})}\n" for step, loss in trained.losses),
        source=origin.source,
        licence=origin.licence,
        min_dice=MIN_DICE if request.asked.min_dice is None else request.asked.min_dice,
    )


def _to_judge_on(request: Request, scans: Parted, scan: TrainingScan) -> Scan:
    whole = read(scan, request.teacher.spec)
    return block(whole, held_out_region(whole)) if scans.by_block else whole


def _options(request: Request, scans: Parted) -> dict[str, Any]:
    """What was asked for, as far as it was done, without names of files."""
    asked = request.asked
    return {
        "width": asked.width,
        "steps": asked.steps,
        "hours": None if asked.seconds is None else asked.seconds / 3600,
        "held-out": None if scans.by_block else asked.held_out,
        "one-scan": scans.by_block,
        "any-modality": asked.any_modality,
        "seed": asked.seed,
        "batch": request.batch,
        "learning rate": asked.learning_rate,
        "pool GiB": asked.pool_gib,
    }
