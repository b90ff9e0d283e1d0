"""The page of a student for people: whose student it is, what it was trained on, how far they agree, what it is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from voxtile.card import rounded_down
from voxtile_build.certificate.distillation import Cost, DistillationReport
from voxtile_build.evaluation.agreement import Agreement, LabelSummary
from voxtile_build.evaluation.summary import ENOUGH_VOXELS, FEW_VOXELS, SEEN_VOXELS

MEBI = 1e6


def model_card(report: DistillationReport, title: str, source: str, licence: str) -> str:
    """The page as Markdown.

    Args:
        report: of the distillation.
        title: what the model does.
        source: where the teacher's weights come from.
        licence: the terms of their use.
    """
    return "\n".join(_page(report, title, source, licence)) + "\n"


def _page(report: DistillationReport, title: str, source: str, licence: str) -> Iterator[str]:
    student, teacher, agreement = report.student, report.teacher, report.agreement
    yield f"# {student.name}, a student of {teacher.name}"
    yield ""
    if title:
        yield from (f"{title}.", "")
    yield (
        f"This network was trained to answer as another one does: its teacher, {teacher.name}. It saw no labels that "
        "people made. It can be no better than its teacher but by chance, and it errs where its teacher errs."
    )
    yield ""
    yield "| | student | teacher |"
    yield "| --- | --- | --- |"
    yield f"| name | {student.name} | {teacher.name} |"
    yield f"| SHA-256 of the weights | {student.weights_sha256} | {teacher.weights_sha256} |"
    passes = f"1 × {student.mirrored_passes} | {teacher.networks} × {teacher.mirrored_passes}"
    yield f"| networks × passes for a tile | {passes} |"
    yield from _costs(student.cost, teacher.cost)
    yield ""
    yield from _measured_on(report)
    yield ""
    yield from _scans(report)
    yield from _training(report)
    yield from _agreement(agreement, teacher.name)
    yield from _what_it_is_not(agreement, teacher.name)
    yield from _origin(source, licence)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"Made with {versions}." if versions else ""


def _costs(student: Cost, teacher: Cost) -> Iterator[str]:
    yield f"| parameters, millions | {student.parameters / MEBI:.3g} | {teacher.parameters / MEBI:.3g} |"
    yield f"| GFLOP for a tile | {_or_dash(student.gflop, '.3g')} | {_or_dash(teacher.gflop, '.3g')} |"
    for name in dict.fromkeys((*teacher.seconds, *student.seconds)):
        both = (_or_dash(one.seconds.get(name), ".3g") for one in (student, teacher))
        yield f"| seconds for a tile, {name} | {' | '.join(both)} |"


def _measured_on(report: DistillationReport) -> Iterator[str]:
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    yield (
        f"Seconds are those of the fastest of some runs, in which both took turns{f', on {machine}' if machine else ''}"
        ". A multiplication and an addition are two operations. Another machine has other seconds."
    )


def _scans(report: DistillationReport) -> Iterator[str]:
    trained, held = len(report.scans.trained_on), len(report.scans.held_out)
    yield "## Scans"
    yield ""
    if report.agreement.block:
        yield (
            "There was one scan. The student was trained on a part of it and judged on another part. So nobody knows "
            "how far it agrees with its teacher on other scans."
        )
    else:
        yield (
            f"The teacher answered for {trained} scan{_s(trained)}, which the student was trained on. {held} other"
            f"{_s(held)} {'were' if held > 1 else 'was'} held out to judge the student. The report has the digests of "
            "their files; no name of a file is kept."
        )
    yield ""


def _training(report: DistillationReport) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield (
        "Patches of the scans were changed at random (turned, scaled, blurred, made noisier), and the teacher answered "
        f"for each of them{_by(report)}. The student learnt its answers: the Kullback-Leibler divergence and soft Dice "
        "between the two, for every voxel."
    )
    yield ""
    # What was done comes before what was asked for: with a budget of hours the steps are known only afterwards.
    facts = {**report.options, **report.training}
    if facts:
        yield from _table("| what | |", facts)
        yield ""


def _by(report: DistillationReport) -> str:
    teacher = report.teacher
    return f" (by {teacher.engine}, {teacher.precision})" if teacher.engine else ""


def _table(head: str, facts: Mapping[str, Any]) -> Iterable[str]:
    yield head
    yield "| --- | --- |"
    for name, value in facts.items():
        yield f"| {name} | {'–' if value is None else _cell(value)} |"


def _agreement(agreement: Agreement, teacher: str) -> Iterator[str]:
    count = len(agreement.scans)
    yield f"## Agreement with {teacher}"
    yield ""
    yield (
        f"Agreement is no accuracy: it compares the student's masks with the teacher's, on {count} held-out "
        f"{'part of a scan' if agreement.block else 'scan' + _s(count)}, as both give them: on the networks' grid, "
        "before what is done to a mask afterwards. Distances are the 95th percentile of the "
        "distances between the two surfaces (95 % Hausdorff distance)."
    )
    yield ""
    yield (
        "| label | scans that show it | mean Dice | lowest Dice | mean distance, mm | largest distance, mm | mean "
        "difference in volume, ml | largest difference in volume, % |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, label in agreement.labels.items():
        yield f"| {_cell(name)} | {_row(label)} |"
    yield ""
    lowest = "none" if agreement.dice_min is None else rounded_down(agreement.dice_min)
    yield (
        f"Lowest Dice of all: {lowest}. At most {100 * agreement.changed_fraction:.3g} % of the voxels of a scan have "
        f"another label. A scan in which a label has fewer than {ENOUGH_VOXELS} voxels, of which at most {FEW_VOXELS} "
        "change, decides about the label only where no other scan does."
    )
    yield ""
    if agreement.unseen_labels:
        unseen = ", ".join(f"{name} ({voxels} voxels)" for name, voxels in agreement.unseen_labels.items())
        yield (
            f"**Not seen: {unseen}.** The held-out scans show fewer than {SEEN_VOXELS} voxels of each. Nobody knows "
            "how far the student agrees with its teacher there."
        )
        yield ""


def _row(label: LabelSummary) -> str:
    cells = (
        str(label.scans),
        *(("–" if dice is None else rounded_down(dice)) for dice in (label.dice_mean, label.dice_min)),
        _or_dash(label.hausdorff_95_mm_mean, ".3g"),
        _or_dash(label.hausdorff_95_mm_max, ".3g"),
        f"{label.volume_difference_ml_mean:.3g}",
        _or_dash(label.volume_difference_percent_max, ".3g"),
    )
    return " | ".join(cells)


def _what_it_is_not(agreement: Agreement, teacher: str) -> Iterator[str]:
    yield "## What it is not"
    yield ""
    yield f"- It is not {teacher}. Whoever needs the teacher's own masks takes the teacher."
    yield "- Nobody measured how right it is. For that, compare its masks with labels that people made."
    yield "- It was judged on scans like those that it was trained on. Other scanners and patients may show more."
    if agreement.block:
        yield "- It was judged on one scan alone, of which it knows the rest."
    yield (
        "- Certificates of its engines compare an engine with this network in fp32. They say nothing of the teacher."
    )
    yield ""


def _origin(source: str, licence: str) -> Iterator[str]:
    if source:
        yield from (f"The teacher's weights come from: {source}.", "")
    if licence:
        yield from (f"Terms of use of the teacher's weights, which may bind its students as well: {licence}.", "")


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
