"""The limits of an engine, and what violates them: over, below, no number, not measured, or not shown by any scan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.specs import fields, spec
from voxtile_build.certificate.limits import limits_of, named, unseen_violations, violations
from voxtile_build.errors import SpecError
from voxtile_build.evaluation.summary import SEEN_VOXELS
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.spec import parse_spec

OTHERS: dict[str, Any] = {"min_dice": 0.995, "max_changed": 0.001, "allow_unseen_labels": False}
LABELS = {"scores": "labels", "dtype": "uint8"}


@pytest.mark.parametrize(
    ("output", "precision", "errors"),
    [
        ({}, "fp32", {"max_abs_error": 0.05, "max_score_error": 0.005, "max_logit_error": 0.01}),
        ({}, "int8", {"max_abs_error": None, "max_score_error": 0.5, "max_logit_error": None}),
        ({"scores": "probabilities"}, "fp32", {"max_abs_error": 0.05, "max_score_error": 0.005}),
        ({"scores": "probabilities"}, "bf16", {"max_abs_error": None, "max_score_error": 0.5}),
        (LABELS, "fp32", {"max_abs_error": 1.0, "max_score_error": 0.5}),
        (LABELS, "int8", {"max_abs_error": 1.0, "max_score_error": 0.5}),
    ],
    ids=str,
)
def test_limits_that_nobody_named(output: dict[str, Any], precision: str, errors: dict[str, float | None]) -> None:
    assert limits_of(spec(output=output), precision) == {**errors, **OTHERS}
    if precision == "fp32":
        assert limits_of(spec(output=output)) == limits_of(spec(output=output), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_limits_that_were_named_hold_in_every_precision(precision: str) -> None:
    named_ones = {"max_abs_error": 0.25, "max_logit_error": 0.375, "max_score_error": 0.75}
    others = {"min_dice": 0.0, "max_changed": 0.0, "allow_unseen_labels": True}
    chosen = spec(acceptance={**named_ones, **others})
    assert limits_of(chosen, precision) == {**named_ones, **others}


def test_a_vote_is_right_or_wrong_whatever_the_spec_says_of_its_error() -> None:
    chosen = spec(output=LABELS, acceptance={"max_abs_error": 0.01, "max_score_error": 0.25})
    assert limits_of(chosen)["max_abs_error"] == 1.0
    assert limits_of(chosen)["max_score_error"] == 0.25


# What violates them

LIMITS = {
    "max_abs_error": 0.5,
    "max_logit_error": 0.25,
    "max_score_error": 0.125,
    "max_changed": 0.0625,
    "min_dice": 0.75,
}
ON = {"max_abs_error": 0.5, "max_logit_error": 0.25, "score_error": 0.125, "changed_fraction": 0.0625, "dice_min": 0.75}
LIMIT_OF = {"score_error": "max_score_error", "changed_fraction": "max_changed", "dice_min": "min_dice"}


def test_a_figure_on_its_limit_is_right() -> None:
    assert violations(ON, LIMITS) == []


@pytest.mark.parametrize("metric", ON)
def test_a_figure_beyond_its_limit_is_told_and_one_that_is_better_is_not(metric: str) -> None:
    sign = -1 if metric == "dice_min" else 1
    direction = "least" if metric == "dice_min" else "most"
    worse = ON[metric] + sign / 1024
    expected = f"{metric}: expected at {direction} {ON[metric]:g}, found {worse:g}"
    assert violations({**ON, metric: worse}, LIMITS) == [expected]
    assert violations({**ON, metric: ON[metric] - sign / 1024}, LIMITS) == []


@pytest.mark.parametrize("metric", ON)
def test_what_is_no_number_or_was_not_measured_violates_its_limit(metric: str) -> None:
    for metrics in ({**ON, metric: math.nan}, {name: value for name, value in ON.items() if name != metric}):
        (violation,) = violations(metrics, LIMITS)
        assert violation.startswith(f"{metric}: expected at ")
        assert violation.endswith("found nan")


@pytest.mark.parametrize("metric", ON)
def test_where_there_is_no_limit_nothing_violates_it(metric: str) -> None:
    limit = LIMIT_OF.get(metric, metric)
    for value in (math.nan, 9.0, -9.0):
        assert violations({**ON, metric: value}, {**LIMITS, limit: None}) == []


def test_scores_without_logits_have_no_limit_of_logits() -> None:
    limits = {name: most for name, most in LIMITS.items() if name != "max_logit_error"}
    assert violations({**ON, "max_logit_error": 9.0}, limits) == []


def test_every_violation_is_told() -> None:
    worse = dict.fromkeys(ON, 9.0) | {"dice_min": 0.0}
    assert [violation.partition(":")[0] for violation in violations(worse, LIMITS)] == [
        "max_abs_error", "max_logit_error", "score_error", "changed_fraction", "dice_min",
    ]  # fmt: skip


# Labels that no scan shows


def unseen(error: float | None, allowed: bool = False, **labels: int) -> list[str]:
    return unseen_violations(labels, {"max_abs_error": error, "allow_unseen_labels": allowed})


def test_an_unseen_label_needs_a_limit_on_every_voxel_or_the_word_of_the_spec() -> None:
    assert unseen(None, lesion=3) != []
    assert unseen(0.1, lesion=3) == []
    assert unseen(0.05, lesion=3) == []
    assert unseen(0.1001, lesion=3) != []
    assert unseen(None, allowed=True, lesion=3) == []
    assert unseen(None) == []


def test_unseen_labels_are_named_with_their_voxels_and_what_to_do() -> None:
    (told,) = unseen(None, lesion=3, scar=0)
    assert f"at least {SEEN_VOXELS} voxels of every label, found lesion in 3, scar in 0; name scans" in told
    assert "(max_abs_error = 0.1 in [acceptance])" in told


def test_of_many_labels_the_first_eight_are_named() -> None:
    assert named({"a": 1, "b": 20}) == "a in 1, b in 20"
    assert named({f"l{index}": index for index in range(10)}).endswith("l6 in 6, l7 in 7 and 2 more")


# The table of the spec


def test_what_the_table_says_where_it_says_nothing() -> None:
    assert Acceptance().model_dump() == {
        "max_abs_error": None,
        "max_logit_error": None,
        "max_score_error": None,
        "min_dice": 0.995,
        "max_changed": 0.001,
        "allow_unseen_labels": False,
        "scans": (),
    }


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("max_score_error", 1.0),
        ("max_score_error", 0.0),
        ("max_abs_error", 0.0),
        ("max_logit_error", -0.5),
        ("min_dice", 1.5),
        ("max_changed", -0.5),
    ],
)
def test_a_limit_that_is_none_or_cannot_be_kept_is_refused(key: str, wrong: float) -> None:
    with pytest.raises(SpecError, match=f"acceptance.{key}"):
        parse_spec(fields(acceptance={key: wrong}), "x.toml", Path())


def test_scores_may_be_almost_as_far_off_as_constant_ones() -> None:
    assert spec(acceptance={"max_score_error": 0.999}).acceptance.max_score_error == 0.999


@pytest.mark.parametrize(
    ("table", "takes"),
    [
        ({}, False),
        ({"allow_unseen_labels": True}, True),
        ({"allow_unseen_labels": True, "max_abs_error": 0.5}, True),
        ({"max_abs_error": 0.1}, True),
        ({"max_abs_error": 0.11}, False),
    ],
    ids=str,
)
def test_reduced_precision_takes_unseen_labels_as_the_certificate_will(table: dict[str, Any], takes: bool) -> None:
    chosen = spec(acceptance=table)
    assert chosen.acceptance.takes_unseen_labels is takes
    assert (unseen_violations({"one": 0}, limits_of(chosen, "int8")) == []) is takes


def test_a_file_alone_is_a_scan_of_one_channel() -> None:
    table = Acceptance.model_validate({"scans": ["a.nii", ["b.nii", "c.nii"]]})
    assert table.scans == ((Path("a.nii"),), (Path("b.nii"), Path("c.nii")))
