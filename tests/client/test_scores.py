"""What scores mean: activations, decisions, and whether a tile holds a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tests.support.monai_cards import (
    class_card,
)
from tests.support.phantoms import (
    card_of,
    phantom_volume,
)
from voxtile.chains.monai.invert import Restorer, restore_bytes
from voxtile.chains.monai.preprocess import preprocess
from voxtile.chains.scores import activator, decider, holds_label, label_type, region_masks
from voxtile.errors import ModelError


@pytest.mark.parametrize("count", [1, 2, 3, 14, 300])
def test_the_largest_score_wins_and_the_first_of_equal_ones(count: int) -> None:
    scores = np.random.default_rng(6).integers(-3, 4, (count, 5, 6, 7)).astype(np.float32)
    decided = decider(class_card(count))(scores)
    np.testing.assert_array_equal(decided, scores.argmax(0))
    assert decided.dtype == (np.uint16 if count > 256 else np.uint8)


@pytest.mark.parametrize("count", [255, 256, 257, 300])
def test_every_label_is_told_from_every_other(count: int) -> None:
    """Also where the last of them is the first that a byte cannot hold."""
    scores = np.eye(count, dtype=np.float32)[..., None, None]
    decided = decider(class_card(count))(scores).ravel()
    np.testing.assert_array_equal(decided, np.arange(count))
    assert decided.dtype == (np.uint8 if count <= 256 else np.uint16)


@pytest.mark.parametrize(("largest", "expected"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (500, np.uint16)])
def test_a_label_that_a_byte_cannot_hold_makes_labels_of_two(largest: int, expected: Any) -> None:
    card = class_card(2, labels=[{"name": "a", "value": 0}, {"name": "b", "value": largest}])
    assert label_type(card) == expected
    scores = np.array([[1, 0], [0, 1]], np.float32).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(decider(card)(scores).ravel(), [0, largest])


def test_labels_have_the_cards_values() -> None:
    labels = [{"name": "a", "value": 7}, {"name": "b", "value": 0}, {"name": "c", "value": 500}]
    card = class_card(3, labels=labels)
    scores = np.random.default_rng(7).normal(0, 1, (3, 5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(decider(card)(scores), np.array([7, 0, 500])[scores.argmax(0)])
    assert label_type(card) == np.uint16


@pytest.mark.parametrize(
    ("kind", "scale", "threshold"), [("logits", 1.0, 0.0), ("probabilities", 1.0, 0.5), ("probabilities", 255.0, 127.5)]
)
def test_later_regions_lie_over_earlier_ones(kind: str, scale: float, threshold: float) -> None:
    labels = [{"name": "whole", "value": 2}, {"name": "core", "value": 1}, {"name": "active", "value": 3}]
    card = card_of(output={"kind": kind, "scores": 3, "scale": scale}, labels=labels, regions=True)
    below, above = np.nextafter(np.float32(threshold), np.array([-1e9, 1e9], np.float32))
    on = np.array(list(np.ndindex(2, 2, 2)), bool).T
    scores = np.where(on, above, below).astype(np.float32)[..., None, None]
    expected = [3 if active else 1 if core else 2 if whole else 0 for whole, core, active in on.T]
    np.testing.assert_array_equal(decider(card)(scores).ravel(), expected)
    assert decider(card)(scores).dtype == np.uint8
    turned = card.model_copy(update={"region_order": ("active", "core", "whole")})
    expected = [2 if whole else 1 if core else 3 if active else 0 for whole, core, active in on.T]
    np.testing.assert_array_equal(decider(turned)(scores).ravel(), expected)
    # MONAI's AsDiscrete(threshold=0.5) takes a probability of exactly one half.
    np.testing.assert_array_equal(decider(card)(np.full_like(scores, threshold)), 3)
    assert holds_label(np.full_like(scores, threshold), card)
    assert not holds_label(np.full_like(scores, below), card)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_foreground_is_more_than_one_half(scale: float) -> None:
    output = {"kind": "foreground", "scores": 1, "scale": scale}
    two = [{"name": "background", "value": 4}, {"name": "lesion", "value": 9}]
    scores = (np.array([0.0, 0.25, 0.5, 0.502, 1.0], np.float32) * np.float32(scale)).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(decider(card_of(output=output, labels=two))(scores).ravel(), [4, 4, 4, 9, 9])
    np.testing.assert_array_equal(decider(card_of(output=output, labels=two[1:]))(scores).ravel(), [0, 0, 0, 9, 9])


def test_class_indices_beyond_the_card_are_the_models_fault() -> None:
    card = class_card(3, output={"kind": "labels", "scores": 1})
    with pytest.raises(ModelError, match="labels 0 to 2 from the model, found 0 to 3"):
        decider(card)(np.array([0, 3, 1], np.float32).reshape(1, 3, 1, 1))
    with pytest.raises(ModelError, match="labels 0 to 2 from the model, found -1 to 2"):
        decider(card)(np.array([0, -1, 2], np.float32).reshape(1, 3, 1, 1))


def test_class_indices_are_rounded_and_stand_for_the_cards_values() -> None:
    labels = [{"name": str(value), "value": value} for value in (7, 0, 5)]
    card = class_card(3, output={"kind": "labels", "scores": 1}, labels=labels)
    found = decider(card)(np.array([0.9, 2.1, -0.4, 1.0], np.float32).reshape(1, 4, 1, 1))
    np.testing.assert_array_equal(found.ravel(), [0, 5, 7, 0])
    assert found.dtype == np.uint8


ROUNDING = 1e-6


def activation_card(activation: str, **changes: Any) -> Any:
    output = {"kind": "logits", "dtype": "fp32", "scores": 2, "activation": activation}
    return card_of(spacing=(1.0, 1.0, 1.0), output=output, **changes)


def logits(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 4, (2, *shape)).astype(np.float32)


def fed_in_steps(
    given: Any, scores: NDArray[np.float32], grid: Any, step: int
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    restorer = Restorer(grid, given, keep_scores=True)
    for first in range(0, scores.shape[1], step):
        restorer.add_planes(scores[:, first : first + step])
    return restorer.finish(), restorer.scores


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("activation", "oracle"), [("softmax", lambda x: softmax(x, axis=0)), ("sigmoid", expit)])
def test_activation_comes_before_the_grid_of_the_scan(activation: str, oracle: Any, step: int) -> None:
    regions = activation == "sigmoid"
    grid = preprocess(phantom_volume(), activation_card(activation)).grid
    scores = logits(grid.shape)
    before = scores.copy()
    labels, found = fed_in_steps(activation_card(activation, regions=regions), scores, grid, step)
    plain = card_of(
        spacing=(1.0, 1.0, 1.0), output={"kind": "probabilities", "dtype": "fp32", "scores": 2}, regions=regions
    )
    expected, probabilities = fed_in_steps(plain, oracle(scores.astype(np.float64)).astype(np.float32), grid, step)
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=ROUNDING)
    assert (labels != expected).mean() <= 1e-4
    assert (scores == before).all(), "what is fed belongs to the caller"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_no_logit_is_too_large(activation: str) -> None:
    extreme = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = activator(activation_card(activation))(extreme)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1, 0, 0.5], [0, 1, 0.5]])


def test_the_bytes_for_the_activation_are_counted() -> None:
    grid = preprocess(phantom_volume(), activation_card("none")).grid
    plain, more = (restore_bytes(grid, activation_card(activation), 4) for activation in ("none", "softmax"))
    assert more - plain == 2 * 4 * 2 * 4 * grid.shape[1] * grid.shape[2]


@pytest.mark.parametrize(
    ("kind", "regions", "scale"),
    [
        ("logits", False, 1.0),
        ("logits", True, 1.0),
        ("probabilities", False, 255.0),
        ("probabilities", True, 255.0),
        ("labels", False, 1.0),
        ("foreground", False, 255.0),
    ],
)
def test_a_tile_holds_a_label_where_any_voxel_gets_one(kind: str, regions: bool, scale: float) -> None:
    scores = 1 if kind in ("labels", "foreground") else 2
    labels = [{"name": name, "value": value} for value, name in enumerate(("first", "second"), int(regions))]
    card = card_of(output={"kind": kind, "scores": scores, "scale": scale}, labels=labels, regions=regions)
    for seed in range(40):
        values = np.random.default_rng(seed).random((scores, 1, 1, 2)) - (0.5 if kind == "logits" else 0.0)
        tile = (np.rint(values) if kind == "labels" else values * scale).astype(np.float32)
        assert holds_label(tile, card) == bool(decider(card)(tile).any())
        level = np.full_like(tile, tile.flat[0])
        assert holds_label(level, card) == bool(decider(card)(level).any())
    half = np.full((scores, 1, 1, 1), 0.0 if kind in ("logits", "labels") else 0.5 * scale, np.float32)
    assert holds_label(half, card) == bool(decider(card)(half).any())


@pytest.mark.parametrize("plan", [None, {"regions_class_order": [1, 2]}])
def test_masks_of_regions_are_bytes_from_one_half_on_or_above_it(plan: Any) -> None:
    labels = [{"name": "whole", "value": 2}, {"name": "core", "value": 1}]
    card = card_of(output={"kind": "probabilities", "scores": 2, "scale": 255.0}, labels=labels, regions=True)
    scores = np.array([[0.49, 0.5], [0.51, 1.0]], np.float32)
    masks = region_masks(scores, card.model_copy(update={"nnunet": plan}), 1.0)
    np.testing.assert_array_equal(masks, [[0, plan is None], [1, 1]])
    assert masks.dtype == np.uint8
