"""An nnU-Net plan in a card: what is read of it, and what is refused by its key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.nnunet_plans import (
    flat,
    plan_json,
    plans,
)
from voxtile.chains.nnunet.plan import NnunetModel, NnunetPlan
from voxtile.errors import ModelError


def test_plan_survives_json() -> None:
    plan = plan_json(foreground_labels=[1, 2])
    assert NnunetPlan.parse(json.loads(json.dumps(plan))) == NnunetPlan.parse(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"resampling_fn_data": "my_resampling"}, "my_resampling"),
        ({"use_mask_for_norm": [False, True]}, "expected 1 entries, one a channel, found 2"),
        ({"transpose_forward": [0, 1, 1]}, "transpose_forward: expected an order of the axes 0, 1, 2"),
        ({"spacing": [1.0]}, "spacing: .*at least 2 items"),
        ({"spacing": [1.0, -1.0, 1.0]}, r"spacing\.1: .*greater than 0, found -1.0"),
        (
            {
                "normalization_schemes": ["CTNormalization"],
                "foreground_intensity_properties_per_channel": {"0": {"mean": 3}},
            },
            "missing: std, percentile_00_5, percentile_99_5",
        ),
    ],
)
def test_plan_that_is_not_understood_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        NnunetPlan.parse(plan_json(**changes))


@pytest.mark.parametrize("key", [key for key in plan_json() if not key.endswith("kwargs")])
def test_missing_key_is_named(key: str) -> None:
    plan = plan_json()
    del plan[key]
    with pytest.raises(ModelError, match=key):
        NnunetPlan.parse(plan)


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ({"op": "erode"}, "op"),
        ({"op": "keep_largest"}, "labels"),
        ({"op": "keep_largest", "labels": []}, "labels"),
        ({"op": "keep_largest", "labels": ["a"]}, "labels.0"),
        ({"op": "keep_largest", "labels": [1.5]}, "labels.0"),
    ],
)
def test_unknown_postprocessing_is_refused_by_its_key(step: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=rf"postprocessing\.0\.{key}"):
        NnunetModel.parse(flat(plans()) | {"n_labels": 4, "postprocessing": [step]})


def test_a_card_says_how_many_labels_there_are() -> None:
    with pytest.raises(ModelError, match="no 'n_labels'; import the model again"):
        NnunetModel.parse(plan_json())
    assert NnunetModel.parse(plan_json(n_labels=4)).scores == 4
    assert NnunetModel.parse(plan_json(n_labels=4, regions_class_order=[1, 3])).scores == 2


def test_keys_of_nnunet_that_are_not_used_are_ignored() -> None:
    assert NnunetPlan.parse(plan_json(batch_size=2, architecture={"n": 1})) == NnunetPlan.parse(plan_json())
