"""Says which of a manifest's cases are this process's: the shard that was asked for, or the one that an engine gives.

Knows nothing of cases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from voxtile.errors import InputError

COUNT = "VOXTILE_SHARDS"
"""The number of shards, where the engine does not say it; then the engine's number counts from 0."""

SLURM = "SLURM_ARRAY_TASK_ID"
KUBERNETES = "JOB_COMPLETION_INDEX"
AWS, AWS_SIZE = "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"
ENGINES = (SLURM, KUBERNETES, AWS)

WRITTEN = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a list that are disjoint and complete.

    Attributes:
        index: which of them, from 0.
        count: how many there are.
        by: where this is from, in words.

    Raises:
        InputError: there is no such shard.
    """

    index: int = 0
    count: int = 1
    by: str = "all cases"

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            most = max(self.count - 1, 0)
            raise InputError(
                f"expected a shard from 0/{self.count} to {most}/{self.count}, which counts from 0, found "
                f"{self.index}/{self.count} ({self.by})"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """The things of this shard: every `count`-th, so that slow neighbours are spread."""
        return things[self.index :: self.count]


def shard_of(asked: str | None, environment: Mapping[str, str]) -> Shard:
    """The shard of this process.

    Args:
        asked: I/N as a user writes it; None to look into the environment.
        environment: the variables of this process.

    Raises:
        InputError: it is none, or the environment does not say it fully.
    """
    if asked is not None:
        written = WRITTEN.fullmatch(asked.strip())
        if written is None:
            raise InputError(f"expected I/N for --shard, such as 0/4, found {asked!r}")
        return Shard(int(written[1]), int(written[2]), "--shard")
    engines = [name for name in ENGINES if environment.get(name)]
    if len(engines) > 1:
        raise InputError(f"expected one engine's variables, found {' and '.join(engines)}; say --shard I/N")
    if not engines:
        return Shard()
    (engine,) = engines
    index = _number(engine, environment)
    if environment.get(COUNT):
        return Shard(index, _number(COUNT, environment), f"{engine} and {COUNT}")
    if engine == SLURM:
        return _slurm(index, environment)
    if engine == AWS and environment.get(AWS_SIZE):
        return Shard(index, _number(AWS_SIZE, environment), f"{engine} and {AWS_SIZE}")
    raise InputError(
        f"{engine}={index}: expected the number of shards in {COUNT} too, found nothing; set it, or say --shard I/N"
    )


def _slurm(task: int, environment: Mapping[str, str]) -> Shard:
    """The shard of a task of a Slurm array, whose numbers run in equal steps from any number."""
    least, most, count = (_number(f"SLURM_ARRAY_TASK_{name}", environment) for name in ("MIN", "MAX", "COUNT"))
    step = _number("SLURM_ARRAY_TASK_STEP", environment) if environment.get("SLURM_ARRAY_TASK_STEP") else 1
    regular = step > 0 and count > 0 and least + (count - 1) * step <= most < least + count * step
    if not regular or (task - least) % step or not least <= task <= most:
        raise InputError(
            f"{SLURM}={task}: expected an array of numbers in equal steps, found {count} from {least} to {most}, whose "
            f"places are not known; say --shard I/N, or set {COUNT} to count from 0"
        )
    return Shard((task - least) // step, count, SLURM)


def _number(name: str, environment: Mapping[str, str]) -> int:
    text = environment.get(name, "").strip()
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise InputError(f"{name}: expected a whole number, found {text!r}; set it, or say --shard I/N")
    return int(text)
