"""Shards: disjoint and complete for every number of them, and what each engine says of its tasks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from voxtile import InputError
from voxtile.batch.cohort.shard import Shard, shard_of


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 41, 1000])
def test_shards_are_disjoint_and_complete(count: int) -> None:
    things = list(range(40))
    parts = [Shard(index, count).of(things) for index in range(count)]
    assert sorted(thing for part in parts for thing in part) == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def slurm(numbers: Iterable[int], step: int | None = 1) -> list[dict[str, str]]:
    """The variables of each task of an array."""
    tasks = sorted(numbers)
    shared = {"MIN": tasks[0], "MAX": tasks[-1], "COUNT": len(tasks)} | ({} if step is None else {"STEP": step})
    return [
        {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in (shared | {"ID": task}).items()} for task in tasks
    ]


@pytest.mark.parametrize(
    ("numbers", "step"),
    [
        (range(4), 1),
        (range(1, 5), 1),
        (range(1, 5), None),
        (range(5, 6), 1),
        (range(0, 10, 3), 3),
        (range(100, 103), 1),
    ],
)
def test_a_slurm_array_is_one_split(numbers: range, step: int | None) -> None:
    shards = [shard_of(None, task) for task in slurm(numbers, step)]
    assert [(shard.index, shard.count) for shard in shards] == [(index, len(numbers)) for index in range(len(numbers))]


@pytest.mark.parametrize("numbers", [[1, 3], [0, 1, 3], [0, 2, 3, 9]])
def test_a_slurm_array_whose_places_are_not_known_is_refused(numbers: list[int]) -> None:
    for task in slurm(numbers):
        with pytest.raises(InputError, match="--shard I/N"):
            shard_of(None, task)
        whole = shard_of(None, task | {"VOXTILE_SHARDS": "10"})
        assert (whole.index, whole.count) == (int(task["SLURM_ARRAY_TASK_ID"]), 10)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"JOB_COMPLETION_INDEX": "2", "VOXTILE_SHARDS": "5"}, (2, 5)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "3"}, (1, 3)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "1", "VOXTILE_SHARDS": "4"}, (1, 4)),
        ({}, (0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": ""}, (0, 1)),
        ({"VOXTILE_SHARDS": "4"}, (0, 1)),
    ],
)
def test_other_engines(environment: dict[str, str], shard: tuple[int, int]) -> None:
    found = shard_of(None, environment)
    assert (found.index, found.count) == shard


@pytest.mark.parametrize(
    "environment",
    [
        {"JOB_COMPLETION_INDEX": "2"},
        {"JOB_COMPLETION_INDEX": "5", "VOXTILE_SHARDS": "5"},
        {"JOB_COMPLETION_INDEX": "-1", "VOXTILE_SHARDS": "5"},
        {"JOB_COMPLETION_INDEX": "0", "VOXTILE_SHARDS": "0"},
        {"JOB_COMPLETION_INDEX": "0", "VOXTILE_SHARDS": "four"},
        {"AWS_BATCH_JOB_ARRAY_INDEX": "1"},
        {"SLURM_ARRAY_TASK_ID": "1"},
        {"SLURM_ARRAY_TASK_ID": "x", "VOXTILE_SHARDS": "4"},
        {"JOB_COMPLETION_INDEX": "1", "VOXTILE_SHARDS": "4", "SLURM_ARRAY_TASK_ID": "1"},
    ],
)
def test_an_engine_that_does_not_say_it_fully_is_refused(environment: dict[str, str]) -> None:
    """Else each task would do every case, or none would do some."""
    with pytest.raises(InputError, match="expected"):
        shard_of(None, environment)
    assert shard_of("3/8", environment) == Shard(3, 8, "--shard")


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "1/", "/4", "0/0", "1 / 4", "a/b", "1/4/2", "1.0/4", "", "²/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        shard_of(text, {})
