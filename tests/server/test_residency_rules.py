"""Which model is loaded and which is unloaded: the rules alone, on a clock of the test's own."""

from __future__ import annotations

import itertools
import random

import pytest

from voxtile_server.errors import ServerError
from voxtile_server.options import ServerOptions
from voxtile_server.residency.rules import (
    GRACE_S,
    PACE,
    REMEMBERED_S,
    SILENCE_S,
    TURN_S,
    Answer,
    Load,
    Rules,
    Unload,
    Use,
)


def loaded(*names: str, most: int | None = None, idle_s: float | None = None) -> Rules:
    """Rules with these models loaded, one second after the other from 0 on."""
    rules = Rules(most, idle_s)
    for second, name in enumerate(names):
        rules.was_loaded(name, second)
    return rules


def test_a_model_is_loaded_once_for_all_that_ask() -> None:
    rules = Rules(1)
    assert [rules.ask("a", 0).state for _ in range(3)] == ["waiting"] * 3
    assert rules.next(0) == Load("a")
    rules.was_loaded("a", 1)
    assert rules.ask("a", 1) == Answer("ready")
    assert rules.next(1) is None


def test_nothing_is_done_unasked() -> None:
    assert Rules(1, 5).next(0) is None
    assert loaded("a", most=1).next(1e6) is None


def test_who_asked_first_is_served_first() -> None:
    rules = Rules(3)
    for second, name in enumerate("cab"):
        rules.ask(name, second)
    order = []
    while isinstance(step := rules.next(3), Load):
        order.append(step.name)
        rules.was_loaded(step.name, 3)
    assert order == ["c", "a", "b"]


def test_the_least_recently_used_makes_room() -> None:
    rules = loaded("a", "b", "c", most=3)
    rules.ask("a", 5)
    rules.observe({"b": Use(1, 0.1)}, 6)
    now = 6 + GRACE_S
    rules.ask("d", now)
    assert rules.next(now) == Unload("c")


@pytest.mark.parametrize(("pace", "free_after"), [(0.1, GRACE_S), (20.0, PACE * 20)])
def test_a_model_in_use_is_left_alone(pace: float, free_after: float) -> None:
    rules = loaded("a", most=1)
    rules.observe({"a": Use(4, pace)}, 1)
    for now in (1.0, free_after / 2, free_after + 0.9):
        rules.ask("b", now)
        assert rules.next(now) is None
    rules.ask("b", free_after + 1)
    assert rules.next(free_after + 1) == Unload("a")


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_models_in_use_take_turns(names: str) -> None:
    """Of models that are used without a pause, each is loaded as long as the others, for a whole turn each time."""
    rules, held = loaded("a", most=1), dict.fromkeys(names, 0)
    changes = []
    for now in range(int(20 * TURN_S)):
        here = rules.loaded
        for name in names:
            if rules.ask(name, now).state == "ready":
                held[name] += 1
        rules.observe({name: Use(now + 1, 0.1) for name in here}, now)
        step = rules.next(now)
        if isinstance(step, Unload):
            rules.was_unloaded(step.name)
            changes.append(now)
        elif isinstance(step, Load):
            rules.was_loaded(step.name, now)
    assert max(held.values()) - min(held.values()) <= TURN_S + 2 * len(changes)
    assert len(changes) >= 10
    assert min(later - earlier for earlier, later in itertools.pairwise(changes)) >= TURN_S


def test_a_model_that_is_being_unloaded_is_not_given_away() -> None:
    rules = loaded("a", most=1, idle_s=5)
    assert rules.next(100) == Unload("a")
    assert rules.ask("a", 100).state == "waiting"
    rules.was_unloaded("a")
    assert rules.next(101) == Load("a")


def test_a_model_that_could_not_be_unloaded_is_still_there() -> None:
    rules = loaded("a", idle_s=5)
    assert rules.next(100) == Unload("a")
    rules.was_kept(100)
    assert rules.ask("a", 100).state == "ready"
    assert rules.next(104) is None
    assert rules.next(105) == Unload("a")


def test_an_idle_model_is_unloaded_and_one_in_use_is_not() -> None:
    rules = loaded("a", "b", idle_s=30)
    rules.observe({"b": Use(1, 0.1)}, 20)
    assert rules.next(29.9) is None
    assert rules.next(30) == Unload("a")
    rules.was_unloaded("a")
    assert rules.next(49.9) is None
    assert rules.next(50) == Unload("b")


@pytest.mark.parametrize("waiting", [False, True])
def test_a_model_that_is_another_in_the_repository_is_unloaded_first_in_use_or_not(waiting: bool) -> None:
    rules = loaded("a", "b", most=2 + waiting)
    rules.ask("b", 2)
    if waiting:
        rules.ask("c", 2)
    assert rules.next(2, ["b", "d"]) == Unload("b")
    assert rules.ask("b", 2).state == "waiting"  # it is not given away any more
    rules.was_unloaded("b")
    assert rules.next(2, []) == Load("c" if waiting else "b")


def test_a_model_whose_requests_take_longer_than_idleness_is_in_use() -> None:
    rules = loaded("a", idle_s=30)
    rules.observe({"a": Use(1, 100.0)}, 1)
    assert rules.next(1 + PACE * 100 - 1) is None
    assert rules.next(1 + PACE * 100) == Unload("a")


def test_figures_that_begin_anew_are_a_use() -> None:
    rules = loaded("a", idle_s=30)
    rules.observe({"a": Use(9, 0.1)}, 1)
    rules.observe({"a": Use(9, 0.1)}, 20)  # no use
    rules.observe({"a": Use(2, 0.1)}, 25)
    assert rules.next(54) is None
    assert rules.next(55) == Unload("a")


def test_nothing_is_loaded_for_a_client_that_has_gone() -> None:
    rules = loaded("a", most=1)
    rules.ask("b", 1)
    assert rules.next(1 + SILENCE_S) is None
    assert rules.next(TURN_S * 10) is None


def test_a_failure_is_told_to_all_for_a_while_and_then_tried_again() -> None:
    rules = Rules(1)
    rules.ask("a", 0)
    assert rules.next(0) == Load("a")
    rules.has_failed("a", "no such file", 1)
    assert rules.ask("a", 1) == rules.ask("a", REMEMBERED_S) == Answer("refused", "no such file")
    assert rules.next(2) is None
    assert rules.ask("a", 1 + REMEMBERED_S).state == "waiting"
    assert rules.next(1 + REMEMBERED_S) == Load("a")


def test_a_failure_stops_no_other() -> None:
    rules = Rules(1)
    rules.ask("a", 0)
    rules.ask("b", 0)
    rules.has_failed("a", "broken", 1)
    assert rules.next(1) == Load("b")


@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_allowed_and_everybody_is_served(seed: int) -> None:
    """Clients that come, ask until they are served, send requests for a while and go, in any order."""
    dice = random.Random(seed)
    most = dice.randint(1, 3)
    rules, now, requests = Rules(most, dice.choice([None, 15.0])), 0.0, 0
    clients = [(dice.choice("abcde"), dice.uniform(0, 300), dice.uniform(1, 200)) for _ in range(12)]
    left = {number: work for number, (_, _, work) in enumerate(clients)}
    while left:
        now += 1
        assert now < 12 * (TURN_S * 5 + 300)
        for number in list(left):
            name, comes, _ = clients[number]
            if comes <= now and rules.ask(name, now).state == "ready":
                requests += 1
                left[number] -= 1
                if left[number] <= 0:
                    del left[number]
        rules.observe({name: Use(requests, 0.5) for name in rules.loaded}, now)
        step = rules.next(now)
        if isinstance(step, Load):
            rules.was_loaded(step.name, now)
        elif step is not None:
            rules.was_unloaded(step.name)
        assert len(rules.loaded) <= most


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_models": 0}, "--max-models: expected a whole number from 1, got 0"),
        ({"max_models": -3}, "--max-models: expected a whole number from 1, got -3"),
        ({"idle_s": 0.0}, "--idle: expected seconds above 0, got 0"),
        ({"idle_s": float("nan")}, "--idle: expected seconds above 0, got nan"),
        ({"idle_s": float("inf")}, "--idle: expected seconds above 0, got inf"),
        ({"max_models": 1, "model_control_mode": "poll"}, "go without --model-control-mode"),
        ({"max_models": 1, "model_control_mode": "explicit", "load_models": ("a",)}, "go without --model-control-mode"),
        ({"idle_s": 5.0, "volume_repository": "volumes"}, "go without --volume-repository"),
        ({"max_models": 1, "tls_certificate": "cert.pem", "tls_key": "key.pem"}, "go without --tls-certificate"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(ServerError, match=said) as refused:
        ServerOptions(**given)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
