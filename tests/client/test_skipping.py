"""What skipped voxels score: what the model itself would give where it is certain of background."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import affine_of, card_of
from voxtile import Segmenter
from voxtile.card import Tiling
from voxtile.chains.scores import activator, decider, holds_label
from voxtile.errors import ModelError
from voxtile.skipping import background_scores, skippable_tiles
from voxtile.tiling.plan import plan_tiles

CASES: dict[str, dict[str, Any]] = {
    "uint8 classes": {"output": {"kind": "probabilities", "dtype": "uint8", "scores": 2, "scale": 255}},
    "classes": {"output": {"kind": "probabilities", "dtype": "fp16", "scores": 2}},
    "softmax": {"output": {"kind": "logits", "activation": "softmax", "scores": 2}},
    "uint8 regions": {
        "output": {"kind": "probabilities", "dtype": "uint8", "scores": 2, "scale": 255},
        "regions": True,
    },
    "regions": {"output": {"kind": "probabilities", "scores": 2}, "regions": True},
    "sigmoid regions": {"output": {"kind": "logits", "activation": "sigmoid", "scores": 2}, "regions": True},
    "uint8 foreground": {"output": {"kind": "foreground", "dtype": "uint8", "scores": 1, "scale": 255}},
    "foreground": {"output": {"kind": "foreground", "scores": 1}},
}
"""Models whose scores are probabilities, or become them."""

ERROR = 1e-6
"""Certain logits are finite, so their probabilities miss 0 and 1 by their last bits."""


def card_for(case: str, at_most: float = 0.0) -> Any:
    return card_of(
        **CASES[case], background={"at_most": at_most}, labels=[{"name": "a", "value": 0}, {"name": "b", "value": 1}]
    )


@pytest.mark.parametrize("case", CASES)
def test_skipped_voxels_are_certain_of_background(case: str) -> None:
    card = card_for(case)
    scores = background_scores(card)[:, None, None, None]
    shares = activator(card)(scores.copy()).ravel() / card.output.scale
    each_alone = bool(card.regions) or card.output.kind == "foreground"
    np.testing.assert_allclose(shares, [0] * len(shares) if each_alone else [1, 0], atol=ERROR)
    assert not holds_label(scores, card)
    assert decider(card)(activator(card)(scores.copy())).item() == 0


@pytest.mark.parametrize("regions", [False, True])
def test_plain_logits_decide_for_background(regions: bool) -> None:
    card = card_of(output={"kind": "logits", "scores": 2}, regions=regions)
    scores = background_scores(card)[:, None, None, None]
    assert decider(card)(scores).item() == 0
    assert not holds_label(scores, card)
    assert np.abs(scores).max() == 1  # larger ones would outweigh their neighbours where they are resampled


@pytest.mark.parametrize("case", CASES)
def test_kept_scores_are_those_of_a_model_that_sees_nothing_there(case: str) -> None:
    card = card_for(case)
    each_alone, unit = bool(card.regions) or card.output.kind == "foreground", card.output.scale

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        found = (tiles > 0).astype(np.float32) * 0.8
        shares = [found] * card.output.scores if each_alone else [1 - found, found]
        values = np.concatenate(shares, axis=1)
        if card.output.kind == "logits":
            values = np.where(values > 0.5, 20.0, -20.0) if each_alone else np.log(np.maximum(values, 1e-9))
        return np.rint(values * unit).astype(np.uint8) if card.output.dtype == "uint8" else values.astype(np.float32)

    values = np.zeros((64, 20, 20), np.float32)
    values[3:9, 5:12, 6:15] = 50
    scan = nifti(values)
    results = []
    for skip in (False, True):
        with Segmenter(
            transport=InMemoryTransport(card, network), skip_empty=skip, spot_check=0, keep_scores=True
        ) as segmenter:
            results.append(segmenter.segment(scan))
    whole, skipped = results
    assert skipped.report.skipped_tiles > 0
    np.testing.assert_array_equal(skipped.labels, whole.labels)
    np.testing.assert_allclose(skipped.scores, whole.scores, atol=1e-5)


def nifti(values: NDArray[Any]) -> Any:
    import nibabel as nib

    return nib.Nifti1Image(values, affine_of(values.shape, (1.0, 1.0, 1.0)))


def test_tiles_are_left_out_by_the_cards_rule_in_units_of_the_scan() -> None:
    card = card_for("classes", at_most=-500.0)
    data = np.full((1, 40, 8, 8), -600, np.int16)
    data[0, 35, 3, 5] = -400
    prepared: Any = SimpleNamespace(data=data, background_at_most=lambda threshold: [threshold])
    plan = plan_tiles((40, 8, 8), (8, 8, 8), Tiling(overlap=0.0))
    assert skippable_tiles(card, prepared, plan) == {0, 1, 2}


def test_a_model_without_a_rule_for_what_is_empty_leaves_nothing_out() -> None:
    card, prepared = card_of(name="without-rule"), cast(Any, None)
    with pytest.raises(ModelError, match="'without-rule' has no rule for what is empty"):
        skippable_tiles(card, prepared, plan_tiles((8, 8, 8), (8, 8, 8), Tiling()))
