"""Reads what a distillation is given, all but the scans, and refuses what cannot end well before anything is built.

Knows no engines and no training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from voxtile.tiling.extract import tta_flips
from voxtile_build.build import check_places
from voxtile_build.checks import check_tables
from voxtile_build.engines import find_engine
from voxtile_build.errors import BuildError, SlimmingError
from voxtile_build.importers.nnunet.models import CHECKPOINT
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.slimming.given.certified import weights_of
from voxtile_build.slimming.given.folders import check_folder, existing
from voxtile_build.slimming.given.source import NnunetChoice, teacher_model
from voxtile_build.slimming.outcome import check_new, outcome_files
from voxtile_build.slimming.plan import Options, check_options
from voxtile_build.slimming.pool import FEWEST, Layout, check_room, patches_within, wanted_patches
from voxtile_build.slimming.pruning.cut import can_prune
from voxtile_build.slimming.pruning.prune import prune
from voxtile_build.slimming.student import new_network, read_student, student_name, student_spec
from voxtile_build.slimming.widths import narrower
from voxtile_build.slimming.work_folder import check_work_folder, was_placing, work_folder
from voxtile_build.spec.name import checked_name
from voxtile_build.spec.spec import Spec

GIB = 1 << 30


@dataclass(frozen=True)
class Request:
    """What a distillation is given, after all checks.

    Attributes:
        asked: the options.
        teacher: the model that answers.
        choice: of its networks, where it is an nnU-Net folder.
        teacher_weights_sha256: of all its networks.
        student: the spec of what learns.
        network: what learns, before its training.
        is_pruned: whether that was cut out of the teacher's first network; else its weights are random.
        most_patches: that the pool may hold.
        warnings: what the user should know, a line each.
    """

    asked: Options
    teacher: Model
    choice: NnunetChoice
    teacher_weights_sha256: str
    student: Spec
    network: nn.Module
    is_pruned: bool
    most_patches: int
    warnings: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """What the student's weights are before its training, in words."""
        return _start_in_words(self.teacher.spec, self.student, self.is_pruned)

    @property
    def batch(self) -> int:
        """Patches in a step."""
        return self.asked.batch or (2 if len(self.student.tiling.roi_size) == 3 else 16)


def read_request(asked: Options) -> Request:
    """Read and check everything that a distillation is given.

    Raises:
        BuildError: says what is wrong, and what to give instead.
    """
    check_options(asked)
    choice = _choice(asked)
    teacher = teacher_model(asked.teacher, choice)
    student = _student(asked, teacher.spec)
    check_folder("--output", asked.output)
    check_work_folder(asked.output, student.name, resume=asked.resume)
    check_new(asked.output, student.name, overwrite=asked.overwrite or was_placing(asked.output, student.name))
    _check_not_given(asked, teacher.spec, student.name)
    network, is_pruned = _start(asked, teacher, student)
    if asked.repository is not None:
        check_places([Model(student, (Fold(student.name, nn.Identity),))], asked.repository)
    warnings = tuple(_no_gain(asked, teacher, student, network, is_pruned))
    most = patches_within(teacher.spec, int(asked.pool_gib * GIB))
    request = Request(asked, teacher, choice, weights_of(teacher), student, network, is_pruned, most, warnings)
    _check_disk(request)
    return request


def _check_disk(request: Request) -> None:
    """Refuse a disk without room for the pool, as far as its size is known; one that was begun has it already."""
    asked = request.asked
    if work_folder(asked.output, request.student.name).exists():
        return
    wanted = FEWEST if asked.steps is None else wanted_patches(asked.steps, None, request.batch)
    check_room(existing(asked.output), Layout.of(request.teacher.spec), min(wanted, request.most_patches))


def _choice(asked: Options) -> NnunetChoice:
    return NnunetChoice(asked.folds, asked.checkpoint or CHECKPOINT, asked.configuration, asked.trainer_keeps_network)


def _student(asked: Options, teacher: Spec) -> Spec:
    if asked.student is not None:
        return read_student(asked.student, teacher, _checked(asked.name))
    assert asked.width is not None
    if teacher.network.file is not None:
        raise SlimmingError(
            f"--width: expected a teacher whose network has a name, found {teacher.network.title}, whose channels "
            "cannot be cut; give --student with a spec of the student"
        )
    args = narrower(teacher.network.name, teacher.network.args, asked.width)
    student = student_spec(teacher, _checked(asked.name) or student_name(teacher.name, asked.width), args)
    if student.name == teacher.name:
        raise SlimmingError(f"--name: expected another name than the teacher's, found {student.name!r}; choose one")
    return student


def _check_not_given(asked: Options, teacher: Spec, name: str) -> None:
    """Refuse to replace, even by --overwrite, what this run is given."""
    given = [path.resolve() for path in (asked.teacher, asked.student, *teacher.files) if path is not None]
    for path in outcome_files(asked.output, name).values():
        if path.resolve() in given:
            raise SlimmingError(f"{path}: is given, and would be replaced; choose another --output or --name")


def _checked(name: str | None) -> str | None:
    try:
        return None if name is None else checked_name(name)
    except ValueError as error:
        raise SlimmingError(f"--name: {error}") from None


def _start(asked: Options, teacher: Model, student: Spec) -> tuple[nn.Module, bool]:
    """The student's network before its training, and whether it was cut out of the teacher's."""
    try:
        check_tables(teacher.spec, ())
    except BuildError as error:
        raise SlimmingError(f"{asked.teacher}: {error}") from None
    try:
        check_tables(student, [find_engine(name) for name in student.serving.engines])
        torch.manual_seed(asked.seed)
        network = new_network(student)
    except BuildError as error:  # a student that nobody wrote is the teacher's
        given = asked.student or f"{asked.teacher}, narrowed by --width {asked.width:g}"
        raise SlimmingError(f"{given}: {error}") from None
    ours, theirs = teacher.spec.network, student.network
    if ours.name != theirs.name or not can_prune(ours.name, ours.args, theirs.args):
        return network, False
    network.load_state_dict(prune(teacher.folds[0].load(), ours.name, ours.args, theirs.args))
    return network, True


def _start_in_words(teacher: Spec, student: Spec, is_pruned: bool) -> str:
    if not is_pruned:
        return "random"
    same = student.network.args == teacher.network.args
    return "the teacher's network, as it is" if same else "the teacher's network, narrowed"


def _no_gain(asked: Options, teacher: Model, student: Spec, network: nn.Module, is_pruned: bool) -> Iterator[str]:
    """Says that a student has no fewer weights than its teacher, over all networks and mirrored passes of a tile."""
    if asked.student is None:  # cut by a width below 1
        return
    own = _weight_count(network) * len(tta_flips(student.tiling.mirror_axes))
    passes = len(teacher.folds) * len(tta_flips(teacher.spec.tiling.mirror_axes))
    theirs = _weight_count(teacher.folds[0].load()) * passes
    if 0 < theirs <= own:  # of a network in a file, weights may be constants
        yield (
            f"{asked.student}: network: expected a student smaller than its teacher, found {own} weights that a tile "
            f"goes through, {theirs} in the teacher: it will hardly be faster. It is trained all the same; its start "
            f"is {_start_in_words(teacher.spec, student, is_pruned)}"
        )


def _weight_count(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())
