"""The report of a distillation: what was trained on what, and how far student and teacher agree.

A student is published only if its report is about exactly its network and weights, and shows agreement enough. Knows
neither how a student is trained nor how the figures are measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from voxtile.card import StudentOf
from voxtile_build.certificate.limits import named
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.agreement import Agreement, Amount, Name, Natural, Part
from voxtile_build.evaluation.summary import SEEN_VOXELS, first_of
from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.distillation import Distillation
from voxtile_build.spec.plain import plain_table
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.table import Sha256

LARGEST_REPORT = 64 << 20
"""Bytes of a report that are read: a thousand scans of a hundred labels take 20 MB."""
SHOWN = 60
"""Characters of a value in a message."""


class Cost(Part):
    """What one tile costs.

    Attributes:
        parameters: numbers that were trained, in all networks together.
        gflop: 10^9 operations for one tile, in all networks and mirrored passes together; a multiplication and an
            addition are two. None where nobody could count them.
        seconds: for one tile, by what computes it, such as `PyTorch fp32`; measured in turns on the machine of the
            report.
    """

    parameters: Natural
    gflop: Amount | None
    seconds: dict[Name, Amount] = Field(default={})


class Teacher(Part):
    """Whose student it is.

    Attributes:
        name: of its spec.
        weights_sha256: of its weights; of several networks, one digest for all.
        networks: how many networks' scores are averaged.
        mirrored_passes: how many passes of each tile are averaged; 1 without mirroring.
        engine: what labelled the patches and the held-out scans.
        precision: what that computes in.
        certificates: SHA-256 of each network's certificate of that engine.
        cost: of all of it.
    """

    name: Name
    weights_sha256: Sha256
    networks: Annotated[int, Field(ge=1)] = 1
    mirrored_passes: Annotated[int, Field(ge=1)] = 1
    engine: str = ""
    precision: str = ""
    certificates: tuple[Sha256, ...] = ()
    cost: Cost


class Student(Part):
    """The network that was trained.

    Attributes:
        name: of its spec.
        weights_sha256: of its weights file.
        mirrored_passes: how many passes of each tile are averaged; 1 without mirroring.
        judged_as: what of its spec the agreement depends on, see `judged_as`.
        cost: in fp32.
    """

    name: Name
    weights_sha256: Sha256
    mirrored_passes: Annotated[int, Field(ge=1)] = 1
    judged_as: dict[str, Any]
    cost: Cost


class Scans(Part):
    """The scans by digests of their files; no name is told, because names may be those of patients.

    Attributes:
        trained_on: the scans that patches were taken from.
        held_out: the others, in the order of the agreement's scans.
    """

    trained_on: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    held_out: Annotated[tuple[Sha256, ...], Field(min_length=1)]


class DistillationReport(Part):
    """NAME.distillation.json.

    Attributes:
        schema_version: of this form.
        student: the network that was trained.
        teacher: whose student it is.
        scans: what the teacher was asked about.
        options: what was asked for, without names of files.
        training: what became of it, such as steps and seconds.
        agreement: how far the two agree.
        machine: where it was made.
        versions: of the packages that took part.
    """

    schema_version: Literal[1] = 1
    student: Student
    teacher: Teacher
    scans: Scans
    options: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(default={})
    agreement: Agreement
    machine: dict[str, str | int] = Field(default={})
    versions: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _of_these_scans(self) -> DistillationReport:
        found, wanted = len(self.agreement.scans), len(self.scans.held_out)
        if found != wanted:
            raise ValueError(f"expected an agreement on the {wanted} scans that were held out, found one on {found}")
        if not self.agreement.block and set(self.scans.held_out) & set(self.scans.trained_on):
            raise ValueError("expected scans held out that were not trained on, found one among both")
        return self

    def text(self) -> str:
        """The report as JSON, the same bytes for the same report."""
        return self.model_dump_json(indent=1) + "\n"


def judged_as(spec: Spec) -> dict[str, Any]:
    """What of a spec decides what a mask is, as plain values by the spec's keys: an agreement holds for nothing else.

    Free are codes of labels, the type that scores travel in, and how the server runs the network.
    """
    preparation, tiling, output = spec.preparation, spec.tiling, spec.output
    network = plain_table(spec.network.model_copy(update={"source": "", "licence": ""}), Path("/"))
    widths = tiling.sigma_scale
    found = {
        "network": {key: value for key, value in network.items() if key not in ("file", "args")},
        "args": spec.network.args,
        "channels": spec.input.channels,
        "input.dtype": spec.input.dtype,
        "orientation": preparation.orientation,
        "spacing": preparation.spacing,
        "steps of the client": [_step(step) for step in preparation.client],
        "intensity": preparation.intensity.model_dump(),
        "steps of the graph": [_step(step) for step in preparation.graph],
        **{key: getattr(output, key) for key in ("scores", "foreground", "regions", "region_order", "activation")},
        "labels": [{"name": label.name, "value": label.value} for label in output.labels],
        "postprocessing": [_step(step) for step in spec.postprocessing or ()],
        **{key: value for key, value in tiling.model_dump().items() if key != "sw_batch_size"},
        "overlap": tiling.overlaps,
        "sigma_scale": widths if isinstance(widths, tuple) else (widths,) * len(tiling.roi_size),
        "nnunet": {key: value for key, value in (spec.nnunet or {}).items() if key != "notes"},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _step(step: BaseModel) -> dict[str, Any]:
    return {"transform": type(step).__name__, **step.model_dump(mode="json", exclude_defaults=True)}


def _between(key: str, judged: Any, wanted: Any) -> Iterator[str]:
    """The differences of a plain value, down to the smallest part that differs, with both values."""
    if isinstance(judged, dict) and isinstance(wanted, dict):
        for name in {**judged, **wanted}:
            yield from _between(f"{key}.{name}", judged.get(name), wanted.get(name))
    elif _is_list(judged) and _is_list(wanted) and len(judged) == len(wanted):
        for index, (one, other) in enumerate(zip(judged, wanted, strict=True)):
            yield from _between(f"{key}[{index}]", one, other)
    elif judged != wanted:
        yield f"{key} ({_said(judged)} when it was judged, {_said(wanted)} now)"


def _is_list(value: Any) -> bool:
    """Whether it is a list whose parts are told one by one: a list of numbers is one value."""
    return isinstance(value, list) and any(isinstance(one, dict | str) for one in value)


def _said(value: Any) -> str:
    text = "nothing" if value is None or value == [] else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


# The gate ------------------------------------------------------------------------------------------------------------


def student_of(spec: Spec) -> StudentOf | None:
    """What the card says of the spec's teacher, if the report of the distillation lets the student be published.

    Args:
        spec: the model.

    Returns:
        None where the spec names no teacher.

    Raises:
        AcceptanceError: the report cannot be read, is not the one that the spec names, is about another network, or
            shows too little agreement; nothing may be published.
    """
    wanted = spec.distillation
    if wanted is None:
        return None
    report = _read(spec, wanted)
    faults = [*_other_student(report, spec), *_other_teacher(report, wanted)]
    if faults:
        raise _refused(spec, f"report: {wanted.report.name} is about something else: {'; '.join(faults)}; distil again")
    faults = [*_too_little(report.agreement, wanted), *_unseen(report.agreement, wanted)]
    if faults or report.agreement.dice_min is None:
        raise _refused(spec, f"as a student of {wanted.teacher} it is not accepted: {'; '.join(faults)}")
    return StudentOf(
        teacher=wanted.teacher,
        weights_sha256=wanted.teacher_sha256,
        dice_min=report.agreement.dice_min,
        scans=len(report.agreement.scans),
        block=report.agreement.block,
        unseen_labels=tuple(report.agreement.unseen_labels),
    )


def _refused(spec: Spec, why: str) -> AcceptanceError:
    return AcceptanceError(f"{spec.name}: distillation: {why}; nothing was published")


def _read(spec: Spec, wanted: Distillation) -> DistillationReport:
    path = wanted.report
    if path.exists() and not path.is_file():  # a pipe that nobody writes to would be waited for
        raise _refused(spec, f"report: {path}: expected a plain file, found a folder, a pipe or a device")
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_REPORT + 1)
    except OSError as error:
        raise _refused(spec, f"report: {path}: cannot be read ({error.strerror or error}); distil writes it") from None
    found = bytes_sha256(content)
    if found != wanted.report_sha256:
        raise _refused(
            spec,
            f"report: {path}: expected sha256 {wanted.report_sha256}, found {found}: it was changed, or is that of "
            "another student",
        )
    try:
        return DistillationReport.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the top"
        raise _refused(spec, f"report: {path}: is no report of a distillation: at {where}: {first['msg']}") from None


def _other_student(report: DistillationReport, spec: Spec) -> Iterator[str]:
    weights = spec.weights.sha256 if spec.weights else spec.network.sha256
    if report.student.weights_sha256 != weights:
        yield f"expected weights with sha256 {weights}, found {report.student.weights_sha256}"
    found, wanted = report.student.judged_as, judged_as(spec)
    other = [one for key in {**wanted, **found} for one in _between(key, found.get(key), wanted.get(key))]
    if other:
        yield f"expected what was judged, found that the spec's {first_of(other)} changed"
    if list(report.agreement.labels) != [label.name for label in spec.output.labels]:
        yield "expected the agreement on each of the spec's labels, found other labels"


def _other_teacher(report: DistillationReport, wanted: Distillation) -> Iterator[str]:
    for what, found, said in (
        ("the teacher", report.teacher.name, wanted.teacher),
        ("a teacher with sha256", report.teacher.weights_sha256, wanted.teacher_sha256),
    ):
        if found != said:
            yield f"expected {what} {said}, found {found}"


def _too_little(agreement: Agreement, wanted: Distillation) -> Iterator[str]:
    if agreement.dice_min is None:
        yield "expected held-out scans that show labels, found none, so that nothing was compared"
    low = {name: one.dice_min for name, one in agreement.labels.items() if one.dice_min is not None}
    low = {name: dice for name, dice in low.items() if not dice >= wanted.min_dice}
    if low:
        worst = sorted(low, key=lambda name: low[name])
        yield (
            f"Dice to the teacher: expected at least {wanted.min_dice:g} of every label of every held-out scan, found "
            f"{first_of([f'{name} {low[name]:.4g}' for name in worst])}; train longer or on more scans, choose a wider "
            "student, or, if you can accept this, set distillation.min_dice"
        )


def _unseen(agreement: Agreement, wanted: Distillation) -> Iterator[str]:
    if agreement.unseen_labels and not wanted.allow_unseen_labels:
        yield (
            f"labels: expected held-out scans that show at least {SEEN_VOXELS} voxels of every label, found "
            f"{named(agreement.unseen_labels)}; hold out scans that show them, or write "
            "allow_unseen_labels = true in [distillation]"
        )


def notes_of(spec: Spec) -> tuple[str, ...]:
    """What a user should know of the model itself, whatever engine runs it: a sentence each, for certificate and card.

    Raises:
        AcceptanceError: as `student_of`.
    """
    return (*spec.notes, *_student_notes(student_of(spec)))


def _student_notes(student: StudentOf | None) -> Iterator[str]:
    """What the agreement with a teacher does not show."""
    if student is not None and student.unseen_labels:
        yield (
            f"labels that the held-out scans hardly show: {first_of(student.unseen_labels)}; nobody knows how far the "
            f"student agrees with {student.teacher} on them"
        )
    if student is not None and student.block:
        yield (
            f"the student of {student.teacher} was trained on one scan and judged on a part of the same one; it may "
            "agree less on others"
        )
