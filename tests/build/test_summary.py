"""The metrics of a certificate are the worst of all tiles and scans; a label is seen in all scans together."""

from __future__ import annotations

import math
from typing import Any

import pytest

from voxtile_build.evaluation.summary import (
    ENOUGH_VOXELS,
    FEW_VOXELS,
    NAMED,
    SEEN_VOXELS,
    counts,
    first_of,
    summary,
    unseen_labels,
)


def test_a_logits_error_is_a_share_of_the_range_of_all() -> None:
    def record(error: float, low: float, high: float) -> dict[str, Any]:
        errors = {"max_abs_error": 0.0, "mean_abs_error": 0.0, "max_abs_error_stored": error}
        together = {"rms_error": 0.0, "spread": 1.0}
        return {**errors, **together, "logits": [low, high], "dice": {}, "changed_fraction": 0.0}

    assert summary([record(0.5, -1, 1), record(0.1, -5, 3)], [record(0.0, -2, 5)])["max_logit_error"] == 0.05
    assert summary([record(0.0, 7, 7)], [])["max_logit_error"] == 0.0


def test_of_several_scans_the_worst_counts() -> None:
    def scan(dice: float, changed: float, error: float) -> dict[str, Any]:
        errors = {"max_abs_error": error, "mean_abs_error": error / 2, "rms_error": error / 4, "spread": 0.5}
        voxels = {"one": ENOUGH_VOXELS, "two": ENOUGH_VOXELS, "none": 0}
        similarities = {"one": 1.0, "two": dice, "none": None}
        return {**errors, "dice": similarities, **counted(voxels), "changed_fraction": changed}

    for scans in ([scan(0.9, 0.1, 0.5), scan(1.0, 0.0, 0.7)], [scan(1.0, 0.0, 0.7), scan(0.9, 0.1, 0.5)]):
        assert summary([], scans) == {
            "max_abs_error": 0.7,
            "mean_abs_error": 0.35,
            "dice_min": 0.9,
            "changed_fraction": 0.1,
            "score_error": 0.35,
        }


def counted(voxels: dict[str, int], changed: int = 0) -> dict[str, Any]:
    return {"voxels": voxels, "changed_by_label": dict.fromkeys(voxels, changed)}


def test_of_a_label_of_few_voxels_a_few_changed_ones_decide_nothing() -> None:
    """Dice 0.5 of six voxels is three of them; of a whole lesion it is the lesion."""

    def dice_min(voxels: int, changed: int) -> float:
        scan = {"dice": {"lesion": 0.5}, **counted({"lesion": voxels}, changed), "changed_fraction": 0.0}
        errors = {"max_abs_error": 0.0, "mean_abs_error": 0.0, "rms_error": 0.0, "spread": 1.0}
        return summary([], [{**scan, **errors}])["dice_min"]

    assert dice_min(ENOUGH_VOXELS - 1, FEW_VOXELS) == 1.0
    assert dice_min(ENOUGH_VOXELS - 1, FEW_VOXELS + 1) == 0.5
    assert dice_min(FEW_VOXELS + 1, FEW_VOXELS + 1) == 0.5
    assert dice_min(ENOUGH_VOXELS, 1) == 0.5


def test_a_label_is_seen_if_all_scans_together_show_enough_of_it() -> None:
    scans = [counted({"one": SEEN_VOXELS - 1, "two": 0}), counted({"one": 1, "two": SEEN_VOXELS - 1})]
    assert unseen_labels(scans) == {"two": SEEN_VOXELS - 1}
    assert unseen_labels(scans[:1]) == {"one": SEEN_VOXELS - 1, "two": 0}


# Each metric by itself


def of_tile(error: float = 0.0, rms: float = 0.0, spread: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"max_abs_error": error, "mean_abs_error": error / 2, "rms_error": rms, "spread": spread, **more}


def of_scan(**more: Any) -> dict[str, Any]:
    label = {"dice": {"one": 1.0}, "voxels": {"one": ENOUGH_VOXELS}, "changed_by_label": {"one": 0}}
    return {**of_tile(), **label, "changed_fraction": 0.0, **more}


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_of_tiles_and_scans_counts_whichever_comes_first(order: int) -> None:
    tiles = [of_tile(0.25), of_tile(0.5), of_tile(0.125)][::order]
    scans = [of_scan(max_abs_error=0.375), of_scan(mean_abs_error=0.75)][::order]
    found = summary(tiles, scans)
    assert (found["max_abs_error"], found["mean_abs_error"]) == (0.5, 0.75)
    scans = [of_scan(dice={"one": 0.75}), of_scan(changed_fraction=0.5), of_scan(dice={"one": 0.5})][::order]
    found = summary(tiles, scans)
    assert (found["dice_min"], found["changed_fraction"]) == (0.5, 0.5)


def test_dice_and_changes_are_those_of_scans_alone() -> None:
    tile = of_tile(dice={"one": 0.0}, voxels={"one": 9999}, changed_by_label={"one": 9999}, changed_fraction=1.0)
    found = summary([tile], [of_scan()])
    assert (found["dice_min"], found["changed_fraction"]) == (1.0, 0.0)
    found = summary([tile], [])
    assert (found["dice_min"], found["changed_fraction"]) == (1.0, 0.0)


def test_every_label_of_every_scan_counts() -> None:
    """A small label that nobody would miss by its changed voxels is a label all the same."""
    voxels = {"large": 90_000, "small": 40, "empty": 0}
    scan = of_scan(
        dice={"large": 0.999, "small": 0.25, "empty": None}, voxels=voxels, changed_by_label={"large": 9, "small": 30}
    )
    assert summary([of_tile()], [of_scan(), scan])["dice_min"] == 0.25
    fewer = {**scan, "changed_by_label": {"large": 9, "small": FEW_VOXELS}}
    assert summary([of_tile()], [of_scan(), fewer])["dice_min"] == 0.999


@pytest.mark.parametrize(
    ("voxels", "changed", "decides"),
    [(1000, 0, True), (999, 10, False), (999, 11, True), (0, 11, True), (0, 0, False)],
)
def test_a_label_counts_by_its_size_or_by_its_change(voxels: int, changed: int, decides: bool) -> None:
    assert counts(voxels, changed) is decides


def test_the_error_of_scores_is_that_of_all_tiles_together_or_of_the_worst_scan() -> None:
    tiles = [of_tile(rms=0.3, spread=3.0), of_tile(rms=0.4, spread=4.0)]
    assert summary(tiles, [])["score_error"] == 0.1
    scans = [of_scan(rms_error=0.1, spread=0.4), of_scan(rms_error=0.2, spread=2.0)]
    for order in (1, -1):
        assert summary(tiles, scans[::order])["score_error"] == 0.25
    assert summary(tiles, [of_scan(rms_error=0.1, spread=4.0)])["score_error"] == 0.1
    assert summary([], scans)["score_error"] == 0.25


def test_one_tile_of_little_structure_does_not_decide() -> None:
    tiles = [of_tile(rms=0.01, spread=0.01), of_tile(rms=0.0, spread=1.0)]
    assert summary(tiles, [])["score_error"] == 0.01


def test_where_nothing_is_off_the_spread_is_not_asked() -> None:
    assert summary([of_tile(spread=0.0)], [])["score_error"] == 0.0


def test_a_scan_that_was_compared_by_its_masks_alone_has_no_errors() -> None:
    """As where only the masks of the reference are stored."""
    masks_only = {name: value for name, value in of_scan(changed_fraction=0.5).items() if name not in of_tile()}
    found = summary([of_tile(0.25, rms=0.5, logits=[0.0, 2.0], max_abs_error_stored=1.0)], [masks_only])
    assert found == {
        "max_abs_error": 0.25,
        "mean_abs_error": 0.125,
        "dice_min": 1.0,
        "changed_fraction": 0.5,
        "score_error": 0.5,
        "max_logit_error": 0.5,
    }


def test_a_constant_tile_counts_only_where_there_is_nothing_else() -> None:
    constant = of_tile(9.0, rms=9.0, logits=[0.0, 1.0], max_abs_error_stored=9.0, constant=True)
    other = of_tile(0.25, rms=0.5, logits=[0.0, 4.0], max_abs_error_stored=1.0)
    found = summary([constant, other], [])
    assert (found["max_abs_error"], found["score_error"], found["max_logit_error"]) == (0.25, 0.5, 0.25)
    assert summary([constant], [])["max_abs_error"] == 9.0
    assert summary([constant], [of_scan(max_abs_error=0.5)])["max_abs_error"] == 0.5


def test_logits_that_do_not_vary_have_an_error_of_their_own_size() -> None:
    same = of_tile(logits=[7.0, 7.0], max_abs_error_stored=0.25)
    assert summary([same], [])["max_logit_error"] == 0.25


def test_shares_have_three_digits() -> None:
    found = summary([of_tile(rms=1.0, spread=3.0, logits=[0.0, 3.0], max_abs_error_stored=2.0)], [])
    assert (found["score_error"], found["max_logit_error"]) == (0.333, 0.667)
    assert "max_logit_error" not in summary([of_tile()], [])
    assert not math.isnan(found["score_error"])


def test_a_label_of_a_hundred_voxels_is_seen() -> None:
    assert unseen_labels([of_scan(voxels={"one": 99, "two": 100}), of_scan(voxels={"one": 0})]) == {"one": 99}
    assert unseen_labels([]) == {}


# Names


def test_of_many_names_the_first_are_told() -> None:
    names = [f"l{index}" for index in range(NAMED + 2)]
    assert first_of(names[:NAMED]) == "l0, l1, l2, l3, l4, l5, l6, l7"
    assert first_of(names[: NAMED + 1]) == "l0, l1, l2, l3, l4, l5, l6, l7 and 1 more"
    assert first_of(names).endswith("l7 and 2 more")
    assert first_of([]) == ""
