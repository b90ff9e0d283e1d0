"""Some hundred changed inputs for every reader: a reader may answer with nothing but its own errors."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.probe import probe
from tests.fuzz.targets import TARGETS

INPUTS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_read(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for number, data in enumerate(TARGETS[name].seeds()):
        TARGETS[name].read(data, tmp_path_factory.mktemp(f"{name}-{number}"))


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_raise_nothing_but_the_readers_own_errors(name: str) -> None:
    target, rng = TARGETS[name], random.Random(17)
    seeds = target.seeds()
    for _ in range(INPUTS):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 5))):
            data = target.change(data, rng)
        probe(target, data)
