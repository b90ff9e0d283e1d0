"""Writes what comes out of a distillation: weights, spec, page, log and report; all of them appear, or none.

Knows nothing of how a student is trained or judged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from voxtile.tiling.extract import tta_flips
from voxtile_build.certificate.distillation import Cost, DistillationReport, Scans, Student, Teacher, judged_as
from voxtile_build.errors import SlimmingError
from voxtile_build.evaluation.agreement import Agreement
from voxtile_build.hashing import bytes_sha256, file_sha256
from voxtile_build.importers.network import load_network
from voxtile_build.machine import machine, versions
from voxtile_build.repository.durable import sync
from voxtile_build.slimming.judging.model_card import model_card
from voxtile_build.spec.distillation import MIN_DICE, Distillation
from voxtile_build.spec.network import Weights
from voxtile_build.spec.spec import Spec, load_spec
from voxtile_build.spec.spec_to_toml import spec_to_toml

ENDINGS = {
    "weights": ".safetensors", "report": ".distillation.json", "page": ".md", "log": ".jsonl", "spec": ".toml",
}  # fmt: skip
"""The files of an outcome, in the order in which they get their names: the spec, which names the others, comes last."""

STAGED = "outcome"
"""The folder, within the work folder, in which the files are made."""
REPLACED = "replaced"
"""The folder, within the work folder, that keeps what is replaced until all is there."""


@dataclass(frozen=True)
class Made:
    """What a distillation made, before it is written.

    Attributes:
        student: the student's spec, without weights.
        network: the student itself, as it was judged.
        teacher: whose student it is.
        scans: what the teacher was asked about.
        agreement: how far the two agree.
        cost: of the student.
        options: what was asked for, as plain values, without names of files.
        training: what became of it, as plain values, such as steps and seconds.
        log: lines of JSON.
        source: where the teacher's weights come from.
        licence: the terms of their use.
        min_dice: the agreement of the worst label below which nothing may be published.
    """

    student: Spec
    network: nn.Module
    teacher: Teacher
    scans: Scans
    agreement: Agreement
    cost: Cost
    options: Mapping[str, Any]
    training: Mapping[str, Any]
    log: str = ""
    source: str = ""
    licence: str = ""
    min_dice: float = MIN_DICE


@dataclass(frozen=True)
class Outcome:
    """The files that were written, and the spec in one of them."""

    spec: Spec
    files: Mapping[str, Path]


def outcome_files(folder: Path, name: str) -> dict[str, Path]:
    """What is written for a student of this name, by what it is."""
    return {what: folder / f"{name}{ending}" for what, ending in ENDINGS.items()}


def check_new(folder: Path, name: str, *, overwrite: bool) -> None:
    """Refuse names that are taken.

    Raises:
        SlimmingError: a file exists, and `overwrite` was not asked for; or it is none that may be replaced.
    """
    taken = [path for path in outcome_files(folder, name).values() if os.path.lexists(path)]
    odd = [path for path in taken if path.is_symlink() or not path.is_file()]
    if odd:
        raise SlimmingError(f"{odd[0]}: expected the name of a new file, found a folder, a link or a device; move it")
    if taken and not overwrite:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise SlimmingError(
            f"{taken[0]}{more}: expected names of new files, found files that exist; choose another --name or "
            "--output, or replace them by --overwrite"
        )


def write_outcome(made: Made, folder: Path, work: Path, *, overwrite: bool = False) -> Outcome:
    """Write all files of an outcome into `folder`.

    Args:
        made: what there is to write.
        folder: an existing folder.
        work: an existing folder on the same disk, for what is not finished.
        overwrite: whether files of an earlier run may be replaced.

    Raises:
        SlimmingError: a name is taken, or the weights do not read back as they are.
        OSError: the disk is full or fails; `folder` is then as it was.
    """
    name = made.student.name
    _check_nameless(made.options)
    check_new(folder, name, overwrite=overwrite)
    staged = _emptied(work / STAGED)
    spec = _stage(made, folder.resolve(), staged)
    check_new(folder, name, overwrite=overwrite)
    _place(staged, folder, name, _emptied(work / REPLACED))
    return Outcome(spec, outcome_files(folder, name))


def _stage(made: Made, folder: Path, staged: Path) -> Spec:
    """Make all files in `staged`; they name one another as they will lie in `folder`."""
    name = made.student.name
    here, there = outcome_files(staged, name), outcome_files(folder, name)
    state = _own(made.network)
    here["weights"].write_bytes(save(state))  # save_file would let nobody else read it
    weights_sha256 = file_sha256(here["weights"])
    report = _report(made, weights_sha256)
    here["report"].write_text(report.text(), encoding="utf-8")
    here["page"].write_text(model_card(report, made.student.title, made.source, made.licence), encoding="utf-8")
    here["log"].write_text(made.log, encoding="utf-8")
    weights = Weights(
        file=there["weights"], sha256=weights_sha256, source=f"student of {made.teacher.name}", licence=made.licence
    )
    table = Distillation(
        teacher=made.teacher.name,
        teacher_sha256=made.teacher.weights_sha256,
        report=there["report"],
        report_sha256=bytes_sha256(here["report"].read_bytes()),
        min_dice=made.min_dice,
    )
    spec = made.student.model_copy(update={"weights": weights, "distillation": table})
    here["spec"].write_text(spec_to_toml(spec, folder), encoding="utf-8")
    _check_readable(here["spec"], spec, state, staged, folder)
    for path in here.values():
        sync(path)
    return spec


def _check_nameless(value: Any) -> None:
    """Refuse what may name a file: names of scans, and of folders with scans, may be those of patients."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            _check_nameless(one)
    elif isinstance(value, Path) or (isinstance(value, str) and os.sep in value):
        raise ValueError("expected options without names of files")


def _own(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network on the CPU; of a tensor that has several names, the first one."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in network.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = value.detach().cpu().clone().contiguous()
    return state


def _report(made: Made, weights_sha256: str) -> DistillationReport:
    return DistillationReport(
        student=Student(
            name=made.student.name,
            weights_sha256=weights_sha256,
            mirrored_passes=len(tta_flips(made.student.tiling.mirror_axes)),
            judged_as=judged_as(made.student),
            cost=made.cost,
        ),
        teacher=made.teacher,
        scans=made.scans,
        options=dict(made.options),
        training=dict(made.training),
        agreement=made.agreement,
        machine={**machine(), "threads": torch.get_num_threads()},
        versions=versions(),
    )


def _check_readable(path: Path, spec: Spec, state: Mapping[str, Tensor], staged: Path, folder: Path) -> None:
    """Refuse an outcome that a build would not read as it was judged."""
    assert spec.weights is not None
    read = load_spec(path)
    here = spec.weights.model_copy(update={"file": staged / spec.weights.file.name})
    network = load_network(read.model_copy(update={"weights": here}))
    found = _own(network)
    if found.keys() != state.keys() or not all(_same(found[name], value) for name, value in state.items()):
        raise SlimmingError(f"{spec.name}: expected weights that read back as they were judged, found others")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _emptied(folder: Path) -> Path:
    """An empty folder in place of what an interrupted run left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _place(staged: Path, folder: Path, name: str, replaced: Path) -> None:
    """Give all files their names; if one cannot have it, all is as it was.

    The spec, without which nobody builds anything, goes first and comes last.
    """
    targets = list(outcome_files(folder, name).values())
    try:
        for target in reversed(targets):
            if target.exists():
                os.rename(target, replaced / target.name)
        for target in targets:
            os.rename(staged / target.name, target)
        sync(folder)
    except BaseException:
        for target in _placed(targets, staged):
            target.unlink()
        for target in targets:
            with suppress(FileNotFoundError):
                os.rename(replaced / target.name, target)
        raise


def _placed(targets: list[Path], staged: Path) -> Iterator[Path]:
    """The targets that have their new file already."""
    return (target for target in targets if not (staged / target.name).exists() and target.exists())
