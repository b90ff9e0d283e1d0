"""The precision search: on engines made of rules, where the best answer is known, and on a real overflow."""

import functools
import json
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support.small_networks import UNET_ROI, blobs, overflowing, plain
from voxtile_build.errors import EngineError
from voxtile_build.precision.mixed_precision import Fp16OverflowError, refuse_overflow, to_mixed
from voxtile_build.precision.quantize_qdq import quantizable, quantize_qdq
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.precision.search import (
    MOST_SPARED,
    Acceptance,
    Candidate,
    Metrics,
    NoVariantError,
    SearchResult,
    search,
)
from voxtile_build.precision.sensitivity import rank_fp16
from voxtile_build.sessions import run_graph

LABELS = {"background": 0, "left": 1, "right": 2}
LAYERS = tuple(f"layer{index}" for index in range(20))
SCANS = [{"roi": blobs((24, 20, 16), seed=seed)} for seed in range(2)]


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


# A real network


def metrics_of(reference: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]) -> Metrics:
    """Dice 2|A∩B| / (|A|+|B|) of each label, and the share of changed voxels."""
    pairs = {name: (reference == value, found == value) for name, value in LABELS.items()}
    dice = {name: 2 * (old & new).sum() / (old.sum() + new.sum()) for name, (old, new) in pairs.items()}
    return Metrics(dice, float(np.mean(reference != found)))


def masks(outputs: list[dict[str, NDArray[Any]]]) -> NDArray[np.integer[Any]]:
    return np.stack([output["scores"].argmax(axis=1) for output in outputs])


def measure_stepwise(model: onnx.ModelProto, reference: NDArray[np.integer[Any]]) -> Metrics:
    with np.errstate(invalid="ignore"):
        return metrics_of(reference, masks(run_stepwise(model, SCANS)))


def test_plain_fp16_is_refused_by_layer_and_auto_finds_a_mixture_that_passes() -> None:
    model = overflowing()
    ranges = tensor_ranges(model, SCANS)
    reference = masks(run_graph(model, SCANS))
    assert all((reference == value).mean() > 0.02 for value in LABELS.values())
    measure = functools.partial(measure_stepwise, reference=reference)

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        refuse_overflow(model, ranges, kept)
        return to_mixed(model, "fp16", kept)

    candidate = Candidate("fp16", build, lambda: rank_fp16(model, SCANS[:1], ranges))
    with pytest.raises(Fp16OverflowError, match="'node_conv3d_1'"):
        candidate.build(frozenset())
    result = search([candidate], measure)
    assert "'node_conv3d_1' reaches" in result.path[0].refused_because[0]
    assert {"node_conv3d_1", "node_conv3d_2"} <= set(result.accepted.kept)
    assert len(result.accepted.kept) < 5
    assert result.accepted.changed is not None
    assert result.accepted.changed <= 0.001
    kinds = {tensor.data_type for tensor in result.engine.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_layers_are_ranked_by_what_they_do_to_the_scores() -> None:
    model = overflowing()
    ranges = tensor_ranges(model, SCANS)
    ranked = rank_fp16(model, SCANS[:1], ranges)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert sorted(ranked) == sorted(convolutions)
    assert set(ranked[:2]) == {"node_conv3d_1", "node_conv3d_2"}


def test_int8_search_on_a_real_network_goes_to_the_mixture_that_passes() -> None:
    model = plain()
    scans = [{"roi": blobs(UNET_ROI, seed=seed)} for seed in range(2)]
    reference = masks(run_graph(model, scans))
    layers = quantizable(model)

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        return quantize_qdq(model, scans, kept)

    def measure(engine: onnx.ModelProto) -> Metrics:
        return metrics_of(reference, masks(run_graph(engine, scans)))

    all_quantised = measure(build(frozenset()))
    # Half of the voxels that change in full int8 may change, so that some layers must be put back.
    asked = Acceptance(max_dice_drop=1.0, max_changed=all_quantised.changed / 2)
    candidates = [
        Candidate("int8", build, lambda: layers),
        Candidate("fp32", lambda kept: model, tuple),
    ]
    result = search(candidates, measure, asked)
    assert not result.path[0].accepted
    assert result.path[0].changed == pytest.approx(all_quantised.changed)
    assert result.accepted.changed is not None
    assert result.accepted.changed <= asked.max_changed
