"""What two results have in common, against SciPy and figures made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit, softmax

from tests.support.specs import spec
from voxtile_build.evaluation.distances import hausdorff_95
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names, masks, probabilities
from voxtile_build.spec.output import Output

Array = NDArray[Any]
LOGITS = np.random.default_rng(4).normal(0, 3, (3, 4, 3, 2)).astype(np.float32)
STORED = {"scores": "probabilities"}
FOREGROUND = {"scores": "foreground", "foreground": "two"}


def output(**changes: Any) -> Output:
    return spec(output=changes).output


# Probabilities


def test_logits_that_exclude_one_another_go_through_softmax() -> None:
    found = probabilities(LOGITS, output())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, softmax(LOGITS.astype(np.float64), axis=0), atol=1e-6)
    np.testing.assert_allclose(probabilities(LOGITS + 1e4, output()), found, atol=1e-3)  # no overflow


def test_logits_of_regions_go_through_sigmoid_each() -> None:
    found = probabilities(LOGITS, output(regions=True))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expit(LOGITS.astype(np.float64)), atol=1e-6)
    assert probabilities(np.array([[-1e30], [0], [1e30]]), output(regions=True)).ravel().tolist() == [0, 0.5, 1]


def test_a_single_logit_without_regions_stays_as_it_is() -> None:
    np.testing.assert_array_equal(probabilities(LOGITS[:1], output(labels=["value"])), LOGITS[:1])
    np.testing.assert_allclose(
        probabilities(LOGITS[:1], output(labels=["value"], regions=True)), expit(LOGITS[:1]), atol=1e-6
    )


@pytest.mark.parametrize(
    "kind", [{"scores": "probabilities"}, FOREGROUND, {"scores": "probabilities", "regions": True}]
)
@pytest.mark.parametrize(("dtype", "scale"), [("fp32", 1), ("fp16", 1), ("uint8", 255)])
def test_stored_probabilities_are_shares_of_the_value_that_stands_for_one(
    kind: dict[str, Any], dtype: str, scale: int
) -> None:
    stored = np.array([[0, 0.25, 1]]) * scale
    found = probabilities(stored, output(**kind, dtype=dtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 0.25, 1]], atol=1e-7)


def test_votes_are_shares_already() -> None:
    votes = np.array([[0.25], [0.75], [0]], np.float32)
    np.testing.assert_array_equal(probabilities(votes, output(scores="labels", dtype="uint8")), votes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_none_without_a_warning(value: float) -> None:
    found = probabilities(np.array([[value, 0.0], [0.0, 0.0], [1.0, 0.0]]), output())
    assert np.isnan(found[:, 0]).any()
    np.testing.assert_allclose(found[:, 1], 1 / 3)


# Masks


def test_the_largest_score_has_the_voxel_and_the_first_of_equal_ones() -> None:
    scores = np.array([[[1, 3, 5]], [[2, 3, 0]], [[0, 1, 5]]], np.float32)
    expected = [[[False, True, True]], [[True, False, False]], [[False, False, False]]]
    for kind in ({}, STORED, {"scores": "labels", "dtype": "uint8"}):
        found = masks(scores, output(**kind))
        assert found.dtype == bool
        assert found.tolist() == expected


def test_regions_have_their_own_voxels_from_even_odds_on() -> None:
    assert masks(np.array([[-1e-6, 0], [5, -5], [0.4, 0.6]]), output(regions=True)).tolist() == [
        [False, True], [True, False], [True, True],
    ]  # fmt: skip
    for dtype, half in (("fp32", 0.5), ("uint8", 127.5)):
        stored = output(scores="probabilities", regions=True, dtype=dtype)
        assert masks(np.array([[half - 0.01, half, half + 0.01]]), stored).tolist() == [[False, True, True]]


def test_foreground_is_what_is_more_likely_than_not() -> None:
    for dtype, half in (("fp32", 0.5), ("uint8", 127.5)):
        stored = output(**FOREGROUND, dtype=dtype)
        assert masks(np.array([[half - 0.01, half, half + 0.01]]), stored).tolist() == [[False, False, True]]


def test_masks_are_named_by_their_labels_or_by_the_foreground_alone() -> None:
    assert mask_names(output()) == ("background", "one", "two")
    assert mask_names(output(**FOREGROUND)) == ("two",)


# Dice and changed voxels


def test_dice_is_twice_what_both_have_by_what_each_has() -> None:
    one, other = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    one[0], other[0, :2, :2], other[1, 0, 0] = True, True, True
    assert dice(one, other) == 2 * 4 / (12 + 5)
    assert (dice(one, one), dice(one, ~one)) == (1.0, 0.0)
    assert dice(one, np.zeros_like(one)) == 0.0
    assert dice(np.zeros_like(one), np.zeros_like(one)) is None


def test_a_voxel_changes_once_however_many_masks_change() -> None:
    one = np.zeros((3, 2, 3), bool)
    other = one.copy()
    other[:, 0, 0], other[2, 1, 2] = True, True
    assert changed_voxels(one, other) == changed_voxels(other, one) == 2
    assert changed_voxels(one, one) == 0


# Distances


def surface(mask: Array) -> Array:
    """Indices of voxels of the mask that have one of the six neighbours outside it, or lie at the volume's border."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(mask):
        around = [index + 1 + sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
        if not all(padded[tuple(place)] for place in around):
            found.append(index)
    return np.array(found)


def by_hand(one: Array, other: Array, spacing: tuple[float, ...]) -> float:
    between = cdist(surface(one) * spacing, surface(other) * spacing)
    return max(float(np.percentile(between.min(axis=axis), 95)) for axis in (0, 1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(9, 8, 7), (11, 12)])
def test_the_distance_is_that_of_all_pairs_of_surface_voxels(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    spacing = (0.7, 1.3, 2.5)[: len(shape)]
    pair = []
    for _ in range(2):
        mask = np.zeros(shape, bool)
        low = rng.integers(0, 4, len(shape))
        mask[tuple(slice(start, start + 4) for start in low)] = True
        mask |= rng.random(shape) < 0.02
        pair.append(mask)
    found = hausdorff_95(*pair, spacing)
    assert found == pytest.approx(by_hand(*pair, spacing))
    assert hausdorff_95(*pair[::-1], spacing) == found


def test_a_small_mask_far_away_counts_in_one_direction_alone() -> None:
    """From the small mask to the large one it is far for all of its voxels; the other way only for a few."""
    one, other = np.zeros((30, 3), bool), np.zeros((30, 3), bool)
    one[:3], other[:3] = True, True
    other[20:24] = True
    assert hausdorff_95(one, other, (1.0, 1.0)) == pytest.approx(by_hand(one, other, (1.0, 1.0)))
    assert by_hand(one, other, (1.0, 1.0)) > 15


def test_all_but_five_voxels_of_a_hundred_are_nearer() -> None:
    one, other = np.zeros((101, 1), bool), np.zeros((101, 1), bool)
    one[0], other[:] = True, True
    assert hausdorff_95(one, other, (2.0, 1.0)) == pytest.approx(190.0)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_an_empty_mask_has_no_distance_but_to_another(first: int, second: int) -> None:
    pair = (np.zeros((3, 3), bool), np.ones((3, 3), bool))
    assert hausdorff_95(pair[first], pair[second], (1.0, 1.0)) is None
    assert hausdorff_95(pair[first], pair[first], (1.0, 1.0)) == 0.0
    assert not math.isnan(hausdorff_95(pair[1], np.eye(3, dtype=bool), (1.0, 1.0)) or 0.0)
