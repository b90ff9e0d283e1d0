"""What a distillation is asked to do, and what it holds to when it goes on after an interruption.

Knows the options and their limits, nothing of networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build import __version__
from voxtile_build.errors import SlimmingError
from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.spec import Spec

HOURS = 1.0
"""Of labelling and training, where neither steps nor hours are given."""
POOL_GIB = 20.0
"""Disk that the pool of labelled patches may take, where nothing is said."""
HELD_OUT = 0.2
MOST_HOURS = 24.0 * 365
MOST_BATCH = 1024
MOST_STEPS = 10**9
MOST_POOL_GIB = 2.0**20
MOST_THREADS = 4096
MOST_SEED = 2**31 - 1
SHA256_DIGITS = 64
NOT_LEARNT = {
    "title": True, "version": True, "serving": True, "acceptance": True, "precision": True, "remarks": True,
    "weights": True,
}  # fmt: skip
"""Tables of a spec that a student's weights do not depend on; the file of the weights may lie elsewhere."""


@dataclass(frozen=True)
class Options:
    """The options of one run.

    Attributes:
        teacher: a spec, or a trained nnU-Net folder or its zip file.
        scans: a folder.
        output: the folder of what comes out.
        width: the share of the teacher's channels that the student has; or None with `student`.
        student: a spec without weights; or None with `width`.
        name: of the student; None for that of its spec, or one that is made of the teacher's name and the width.
        steps: of training; None for `hours`.
        hours: of labelling and training, over all restarts.
        held_out: the share of scans that the student never sees, and is judged on.
        one_scan: whether one scan alone may be cut into a part for training and one for judging.
        any_modality: whether scans are taken whose values are far from what the teacher was made for.
        seed: of everything that is drawn.
        batch: patches in a step; None for what suits the number of axes.
        learning_rate: the highest; None for what suits the network.
        pool_gib: disk that the labelled patches may take.
        min_dice: agreement of the worst label below which nothing is published; None for the default of a spec.
        threads: of the CPU; None for all.
        resume: whether a run that was interrupted goes on.
        overwrite: whether what an earlier run left in `output` may be replaced.
        repository: where the student is published; None for nowhere.
        folds, checkpoint, configuration, trainer_keeps_network: of an nnU-Net teacher, as for `voxtile-build nnunet`.
    """

    teacher: Path
    scans: Path
    output: Path
    width: float | None = None
    student: Path | None = None
    name: str | None = None
    steps: int | None = None
    hours: float | None = None
    held_out: float = HELD_OUT
    one_scan: bool = False
    any_modality: bool = False
    seed: int = 0
    batch: int | None = None
    learning_rate: float | None = None
    pool_gib: float = POOL_GIB
    min_dice: float | None = None
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    repository: Path | None = None
    folds: Sequence[str] | None = None
    checkpoint: str | None = None
    configuration: str | None = None
    trainer_keeps_network: bool = False

    @property
    def seconds(self) -> float | None:
        """Of labelling and training; None where the steps are counted."""
        return None if self.steps is not None else 3600 * (HOURS if self.hours is None else self.hours)


def check_options(asked: Options) -> None:
    """Refuse options that contradict one another, or that no run can hold to.

    Raises:
        SlimmingError: names the first.
    """
    pairs = {("--width", "--student"): (asked.width, asked.student), ("--steps", "--hours"): (asked.steps, asked.hours)}
    for (one, other), values in pairs.items():
        if None not in values:
            raise SlimmingError(f"expected {one} or {other}, found both; leave one out")
    if asked.width is None and asked.student is None:
        raise SlimmingError(
            "expected --width, such as 0.5, or --student with a spec of the student, found neither; the width is the "
            "share of the teacher's channels that is kept"
        )
    for option, value, is_within, what in _limits(asked):
        if value is not None and not is_within:
            raise SlimmingError(f"{option}: expected {what}, found {value}")


def _limits(asked: Options) -> Iterator[tuple[str, float | None, bool, str]]:
    """Of each option with a number: its name, its value, whether that is within its limits, and these in words."""
    yield "--width", asked.width, 0 < (asked.width or 0) < 1, "a share of the teacher's channels above 0 and below 1"
    yield "--steps", asked.steps, 1 <= (asked.steps or 0) <= MOST_STEPS, f"from 1 to {MOST_STEPS} training steps"
    yield "--hours", asked.hours, 0 < (asked.hours or 0) <= MOST_HOURS, "hours above 0, at most a year"
    yield "--held-out", asked.held_out, 0 < asked.held_out < 1, "a share of the scans above 0 and below 1"
    yield "--seed", asked.seed, 0 <= asked.seed <= MOST_SEED, f"a whole number from 0 to {MOST_SEED}"
    yield "--batch", asked.batch, 1 <= (asked.batch or 0) <= MOST_BATCH, f"from 1 to {MOST_BATCH} patches in a step"
    yield "--learning-rate", asked.learning_rate, 0 < (asked.learning_rate or 0) <= 1, "a rate above 0, at most 1"
    pool = f"GiB of disk above 0, at most {MOST_POOL_GIB:.0f}"
    yield "--pool", asked.pool_gib, 0 < asked.pool_gib <= MOST_POOL_GIB, pool
    yield "--min-dice", asked.min_dice, 0 <= (asked.min_dice or 0) <= 1, "a Dice from 0 to 1"
    yield "--threads", asked.threads, 1 <= (asked.threads or 0) <= MOST_THREADS, f"from 1 to {MOST_THREADS} threads"


def facts_of(
    asked: Options, teacher: Spec, weights_sha256: str, student: Spec, scans: Mapping[str, str]
) -> dict[str, Any]:
    """What a run must hold to if it is to end as it began, as plain JSON.

    Threads, limits of what comes out, and where files lie are left out: they may change while a run is interrupted.

    Args:
        asked: the options.
        teacher: the spec of what answers.
        weights_sha256: of what answers.
        student: the spec of what learns.
        scans: by the SHA-256 of each scan's files, the side that it is on, such as `training`.
    """
    facts: dict[str, Any] = {
        "voxtile-build": __version__,
        "teacher": _digest(teacher.model_dump(mode="json", exclude=NOT_LEARNT)),
        "the teacher's weights": weights_sha256,
        "student": _digest(student.model_dump(mode="json", exclude=NOT_LEARNT)),
        "scans": dict(scans),
        "--steps": asked.steps,
        "--hours": None if asked.seconds is None else asked.seconds / 3600,
        "--held-out": asked.held_out,
        "--one-scan": asked.one_scan,
        "--seed": asked.seed,
        "--batch": asked.batch,
        "--learning-rate": asked.learning_rate,
        "--pool": asked.pool_gib,
    }
    return facts


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run that was begun with something else.

    Args:
        before: the facts of the run in `folder`.
        now: the facts of this run.
        folder: what the run left.

    Raises:
        SlimmingError: names what differs.
    """
    found = [
        _difference(key, before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)
    ]
    if found:
        raise SlimmingError(
            f"{folder}: --resume goes on with a run that was begun with something else: {'; '.join(found)}; give what "
            "it was begun with, or remove the folder and begin anew"
        )


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lost, new = [one for one in before if one not in now], [one for one in now if one not in before]
        if not lost and not new:
            moved = [one for one in before if before[one] != now[one]]
            return f"{key} ({len(moved)} changed sides between training and judging, by the persons in their names)"
        parts = {"missing": lost, "new": new}  # which side the others are on follows from these
        return f"{key} ({', '.join(f'{len(names)} {what}' for what, names in parts.items() if names)})"
    if isinstance(before, str) and len(before) == SHA256_DIGITS:
        return f"another {key}"
    return f"{key} {'left out' if before is None else before} then, {'left out' if now is None else now} now"


def _digest(value: Any) -> str:
    return bytes_sha256(json.dumps(value, sort_keys=True).encode())
