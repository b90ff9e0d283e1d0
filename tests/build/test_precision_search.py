"""The precision search, on engines made of rules, where the best answer is known."""

import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from voxtile_build.errors import EngineError
from voxtile_build.precision.mixed_precision import Fp16OverflowError
from voxtile_build.precision.search import (
    MOST_SPARED,
    Acceptance,
    Candidate,
    Metrics,
    NoVariantError,
    SearchResult,
    search,
)

LAYERS = tuple(f"layer{index}" for index in range(20))
RIGHT, WRONG = Metrics({"left": 1.0}, 0.0), Metrics({"left": 0.9}, 0.0)


def needs(count: int) -> Callable[[frozenset[str]], Metrics]:
    """An engine that is right once the first `count` layers are back, and better the more are."""

    def measure(kept: frozenset[str]) -> Metrics:
        missing = len(set(LAYERS[:count]) - kept)
        return Metrics({"left": 1 - 0.01 * missing}, 0.01 * missing)

    return measure


def rule_search(count: int, *, fallback: bool = True) -> SearchResult[Any]:
    def measure(engine: tuple[str, frozenset[str]]) -> Metrics:
        return needs(count)(engine[1]) if engine[0] == "int8" else Metrics({"left": 1.0}, 0.0)

    def candidate(precision: str) -> Candidate[tuple[str, frozenset[str]]]:
        return Candidate(precision, lambda kept: (precision, kept), lambda: LAYERS)

    return search([candidate("int8"), *([candidate("fp32")] if fallback else [])], measure)


@pytest.mark.parametrize("count", range(11))
def test_fewest_layers_are_put_back(count: int) -> None:
    result = rule_search(count)
    assert result.accepted.precision == "int8"
    assert result.accepted.kept == LAYERS[:count]
    # Doubling and halving, not one layer after the other; then a few are tried without.
    assert len(result.path) <= 9 + MOST_SPARED


def needing(*needed: str) -> SearchResult[frozenset[str]]:
    """A search where just these layers have to be put back."""

    def measure(kept: frozenset[str]) -> Metrics:
        return Metrics({"left": 1.0 if set(needed) <= kept else 0.9}, 0.0)

    return search([Candidate("int8", lambda kept: kept, lambda: LAYERS)], measure)


@pytest.mark.parametrize("needed", [(2,), (4,), (0, 3), (1, 2), (0, 1, 2), (3, 4)])
def test_layers_that_turn_out_not_to_be_needed_are_not_kept(needed: tuple[int, ...]) -> None:
    result = needing(*(LAYERS[index] for index in needed))
    assert result.accepted.kept == tuple(LAYERS[index] for index in needed)
    assert result.engine == frozenset(result.accepted.kept)
    assert result.accepted in result.path


def test_only_a_few_are_tried_without() -> None:
    result = needing(LAYERS[9])
    assert len(result.accepted.kept) == 10 - MOST_SPARED
    assert len(result.path) <= 9 + MOST_SPARED


@pytest.mark.parametrize("count", [11, 20])
def test_candidate_that_needs_most_layers_gives_way_to_the_next(count: int) -> None:
    result = rule_search(count)
    assert result.accepted.precision == "fp32"
    assert result.accepted.kept == ()
    assert {step.precision for step in result.path} == {"int8", "fp32"}


def test_no_variant_is_an_error_that_tells_the_path() -> None:
    with pytest.raises(NoVariantError, match="Dice of 'left' is") as caught:
        rule_search(20, fallback=False)
    assert len(caught.value.path) == 6
    assert not any(step.accepted for step in caught.value.path)


def test_fastest_that_passes_at_once_is_neither_ranked_nor_tried_again() -> None:
    def never() -> tuple[str, ...]:
        raise AssertionError("ranking is the expensive part")

    result = search([Candidate("fp16", lambda kept: kept, never)], lambda kept: Metrics({"left": 1.0}, 0.0))
    assert [step.accepted for step in result.path] == [True]


@pytest.mark.parametrize("needed", [1, 3, 8, 20])
def test_attempts_are_given_back_and_at_most_two_are_kept(needed: int) -> None:
    class Attempt:
        def __init__(self, kept: frozenset[str]) -> None:
            self.kept = kept

    alive: weakref.WeakSet[Attempt] = weakref.WeakSet()
    discarded: list[frozenset[str]] = []

    def build(kept: frozenset[str]) -> Attempt:
        assert len(alive) < 2, "the best and the one that is being built"
        alive.add(attempt := Attempt(kept))
        return attempt

    def measure(attempt: Attempt) -> Metrics:
        return Metrics({"left": 1.0 if len(attempt.kept) >= needed else 0.9}, 0.0)

    candidates = [Candidate("int8", build, lambda: LAYERS), Candidate("fp32", lambda _: build(frozenset(LAYERS)))]
    result = search(candidates, measure, discard=lambda attempt: discarded.append(attempt.kept))
    assert list(alive) == [result.engine]
    assert len(discarded) == len(result.path) - 1
    assert result.engine.kept not in discarded


def test_path_is_plain_json_and_each_refusal_says_why() -> None:
    result = rule_search(3)
    record = json.loads(json.dumps(result.as_dict()))
    assert record["accepted"] == [step for step in record["path"] if step["accepted"]][-1]
    assert record["accepted"]["kept"] == list(LAYERS[:3])
    for step in record["path"]:
        assert step["accepted"] is (step["refused_because"] == [])
    assert "change" in record["path"][0]["refused_because"][1]


def test_layer_that_the_builder_names_is_put_back_and_tried_again() -> None:
    def build(kept: frozenset[str]) -> frozenset[str]:
        for layer in ("loud", "louder"):
            if layer not in kept:
                raise Fp16OverflowError(layer, 1e6)
        return kept

    result = search([Candidate("fp16", build)], lambda kept: Metrics({"left": 1.0}, 0.0))
    assert [step.kept for step in result.path] == [(), ("loud",), ("loud", "louder")]
    assert result.accepted.kept == ("loud", "louder")
    assert "'loud' reaches 1e+06" in result.path[0].refused_because[0]


def test_builder_that_always_fails_is_tried_once() -> None:
    def build(kept: frozenset[str]) -> frozenset[str]:
        raise EngineError("no such engine here")

    with pytest.raises(NoVariantError, match="no such engine here") as caught:
        search([Candidate("int8", build, lambda: LAYERS)], lambda kept: Metrics({}, 0.0))
    assert len(caught.value.path) == 1


def test_builder_that_blames_a_layer_already_kept_is_not_tried_for_ever() -> None:
    def build(kept: frozenset[str]) -> frozenset[str]:
        raise Fp16OverflowError("loud", 1e6)

    with pytest.raises(NoVariantError) as caught:
        search([Candidate("fp16", build)], lambda kept: Metrics({}, 0.0))
    assert len(caught.value.path) == 2


@pytest.mark.parametrize(
    ("metrics", "missed"),
    [
        (Metrics({"left": 0.995, "right": 1.0}, 0.001), 0),
        (Metrics({"left": 0.9949, "right": 1.0}, 0.0), 1),
        (Metrics({"left": 1.0, "right": 1.0}, 0.0011), 1),
        (Metrics({"left": 0.9, "right": 0.9}, 0.5), 3),
        (Metrics({"left": float("nan")}, float("nan")), 2),
    ],
)
def test_acceptance_names_each_figure_that_is_missed(metrics: Metrics, missed: int) -> None:
    # 1 - 0.995 is a hair above 0.005 in binary.
    assert len(Acceptance(max_dice_drop=0.005 + 1e-12).missed(metrics)) == missed


def test_lossless_is_possible() -> None:
    lossless = Acceptance(max_dice_drop=0, max_changed=0)
    assert lossless.missed(Metrics({"left": 1.0}, 0.0)) == []
    assert len(lossless.missed(Metrics({"left": 0.999999}, 1e-9))) == 2


# The order of the tries


def tried(path: Sequence[Any]) -> list[tuple[str, ...]]:
    return [step.kept for step in path]


def test_candidates_are_tried_in_their_order_and_the_first_that_passes_is_taken() -> None:
    """The fastest comes first; a slower one that would pass too is not even built."""
    built: list[str] = []

    def candidate(precision: str) -> Candidate[str]:
        def build(kept: frozenset[str]) -> str:
            built.append(precision)
            return precision

        return Candidate(precision, build)

    passing = {"bf16", "fp32"}
    names = ["int8", "fp16", "bf16", "fp32"]
    result = search([candidate(name) for name in names], lambda name: RIGHT if name in passing else WRONG)
    assert result.engine == result.accepted.precision == "bf16"
    assert built == [step.precision for step in result.path] == ["int8", "fp16", "bf16"]


def test_layers_are_doubled_then_halved_then_tried_without() -> None:
    result = rule_search(7)
    seven = LAYERS[:7]
    without = [tuple(layer for layer in seven if layer != LAYERS[index]) for index in (5, 4, 3, 2)]
    doubled, halved = [LAYERS[:count] for count in (0, 1, 2, 4, 8)], [LAYERS[:6], seven]
    assert tried(result.path) == [*doubled, *halved, *without]


def test_where_one_layer_is_enough_nothing_more_is_tried() -> None:
    assert tried(rule_search(1).path) == [(), LAYERS[:1]]
    assert tried(rule_search(0).path) == [()]


@pytest.mark.parametrize(("layers", "counts"), [(1, [0]), (2, [0, 1]), (5, [0, 1, 2]), (9, [0, 1, 2, 4])])
def test_at_most_half_of_the_layers_are_put_back(layers: int, counts: list[int]) -> None:
    with pytest.raises(NoVariantError) as caught:
        search([Candidate("int8", lambda kept: kept, lambda: LAYERS[:layers])], lambda _: WRONG)
    assert tried(caught.value.path) == [LAYERS[:count] for count in counts]


def test_a_layer_that_is_not_needed_stays_out_while_others_are_tried() -> None:
    """Of the first eight, the layers 1 and 7 are needed."""
    result = needing(LAYERS[1], LAYERS[7])
    spared = [{2, 3, 4, 5, 6} - {*range(6, last, -1)} for last in (5, 4, 3, 2)]
    assert [set(step) for step in tried(result.path)[-4:]] == [
        {LAYERS[index] for index in {0, 1, 7} | left} for left in spared
    ]
    assert result.accepted.kept == tuple(LAYERS[index] for index in (0, 1, 2, 7))


def test_layers_are_ranked_once() -> None:
    asked = []

    def rank() -> tuple[str, ...]:
        asked.append(True)
        return LAYERS

    search([Candidate("int8", lambda kept: kept, rank)], lambda kept: RIGHT if len(kept) > 6 else WRONG)
    assert asked == [True]


def test_a_layer_that_overflows_stays_back_while_others_are_put_back() -> None:
    def build(kept: frozenset[str]) -> frozenset[str]:
        if "loud" not in kept:
            raise Fp16OverflowError("loud", 1e6)
        return kept

    ranked = ("first", "loud", "second", "third", "fourth", "fifth")
    result = search(
        [Candidate("fp16", build, lambda: ranked)], lambda kept: RIGHT if {"first", "second"} <= kept else WRONG
    )
    assert tried(result.path) == [
        (),
        ("loud",),
        ("loud", "first"),
        ("loud", "first"),
        ("loud", "first", "second"),
        ("loud", "first", "second"),
        ("loud", "second"),
    ]
    assert result.accepted.kept == ("loud", "first", "second")


def failing_at(count: int) -> Callable[[frozenset[str]], frozenset[str]]:
    def build(kept: frozenset[str]) -> frozenset[str]:
        if len(kept) == count:
            raise EngineError("out of memory")
        return kept

    return build


def test_a_builder_that_fails_while_layers_are_added_gives_way_to_the_next() -> None:
    candidates = [Candidate("int8", failing_at(2), lambda: LAYERS), Candidate("fp32", lambda kept: kept | {"all"})]
    result = search(candidates, lambda kept: RIGHT if "all" in kept or len(kept) > 3 else WRONG)
    assert [(step.precision, len(step.kept)) for step in result.path] == [
        ("int8", 0),
        ("int8", 1),
        ("int8", 2),
        ("fp32", 0),
    ]
    assert result.path[2].refused_because == ("out of memory",)


def test_a_builder_that_fails_once_a_variant_has_passed_costs_only_that_try() -> None:
    candidate = Candidate("int8", failing_at(6), lambda: LAYERS)
    result = search([candidate], lambda kept: RIGHT if len(kept) > 4 else WRONG)
    assert [len(step.kept) for step in result.path[:6]] == [0, 1, 2, 4, 8, 6]
    assert result.accepted.kept == LAYERS[:7]
    assert result.engine == frozenset(LAYERS[:7])


# What is recorded


def test_a_step_says_what_was_measured_and_what_was_missed() -> None:
    def build(kept: frozenset[str]) -> int:
        if len(kept) == 1:
            raise Fp16OverflowError("layer1", 1e6)
        return len(kept)

    found = {0: Metrics({"left": 0.9, "right": 1.0}, 0.25), 2: Metrics({"left": 0.999, "right": 1.0}, 0.0005)}
    result = search([Candidate("int8", build, lambda: LAYERS[:4])], lambda layers: found[layers])
    path = [
        {
            "precision": "int8",
            "kept": [],
            "accepted": False,
            "refused_because": [
                "Dice of 'left' is 0.9000, at least 0.9950 is asked for",
                "25.000% of the voxels change, at most 0.100% may",
            ],
            "dice": {"left": 0.9, "right": 1.0},
            "changed": 0.25,
        },
        {
            "precision": "int8",
            "kept": ["layer0"],
            "accepted": False,
            "refused_because": [str(Fp16OverflowError("layer1", 1e6))],
            "dice": {},
            "changed": None,
        },
        {
            "precision": "int8",
            "kept": ["layer1", "layer0"],
            "accepted": True,
            "refused_because": [],
            "dice": {"left": 0.999, "right": 1.0},
            "changed": 0.0005,
        },
    ]
    assert result.as_dict() == {"accepted": path[-1], "path": path}


def test_the_error_tells_every_try_and_its_reason() -> None:
    candidates = [Candidate("int8", lambda kept: kept, lambda: LAYERS[:2]), Candidate("bf16", lambda kept: kept)]
    missed = "Dice of 'left' is 0.9000, at least 0.9950 is asked for, 50.000% of the voxels change, at most 0.100% may"
    with pytest.raises(NoVariantError) as caught:
        search(candidates, lambda _: Metrics({"left": 0.9}, 0.5))
    tries = [f"{name} with {count} layers back: {missed}" for name, count in (("int8", 0), ("int8", 1), ("bf16", 0))]
    assert f"Tried: {'; '.join(tries)}. Add 'fp32'" in str(caught.value)
    assert isinstance(caught.value.path, tuple)
    with pytest.raises(NoVariantError, match="Tried: nothing"):
        search([], lambda _: RIGHT)


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        (Metrics({"left": 0.9951, "right": 0.9951}, 0.001), True),
        (Metrics({"left": 1.0, "right": 0.9949}, 0.0), False),
        (Metrics({"left": 1.0}, 0.00101), False),
        (Metrics({}, 0.001), True),
    ],
)
def test_limits_that_nobody_named_are_half_a_percent_of_dice_and_one_voxel_in_a_thousand(
    metrics: Metrics, passes: bool
) -> None:
    assert (Acceptance().missed(metrics) == []) is passes
    if passes:
        assert search([Candidate("int8", lambda kept: kept)], lambda _: metrics).accepted.accepted
    else:
        with pytest.raises(NoVariantError):
            search([Candidate("int8", lambda kept: kept)], lambda _: metrics)


def test_the_limits_that_were_named_decide() -> None:
    candidate = Candidate("int8", lambda kept: kept)
    assert search([candidate], lambda _: WRONG, Acceptance(max_dice_drop=0.2)).accepted.accepted
    with pytest.raises(NoVariantError):
        search([candidate], lambda _: Metrics({"left": 0.9999}, 0.0), Acceptance(max_dice_drop=0.0))


def test_engines_are_given_back_as_soon_as_they_are_not_needed() -> None:
    discarded: list[frozenset[str]] = []
    measured: list[frozenset[str]] = []

    def measure(kept: frozenset[str]) -> Metrics:
        measured.append(kept)
        return RIGHT if {LAYERS[0], LAYERS[2]} <= kept else WRONG

    result = search(
        [Candidate("int8", lambda kept: kept, lambda: LAYERS)],
        measure,
        Acceptance(),
        lambda kept: discarded.append(kept),
    )
    first = {0, 1, 2, 3}
    kept_layers = [set(), {0}, {0, 1}, first, {0, 1, 2}, {0, 2}, {2}]
    assert measured == [frozenset(LAYERS[index] for index in kept) for kept in kept_layers]
    assert discarded == [measured[index] for index in (0, 1, 2, 3, 4, 6)]
    assert result.engine == measured[5]
