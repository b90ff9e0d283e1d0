"""Stitching in half precision: near, never beyond its range, and few labels changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.nnunet_plans import smooth_logits
from tests.support.strips import stitched
from voxtile.card import Tiling
from voxtile.tiling.plan import TilePlan, plan_tiles
from voxtile.tiling.rules.all import RULES
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher

HALF_STEP = 2.0**-11
"""float16 rounds by at most this share of a number."""


@pytest.mark.parametrize("semantics", RULES)
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.85])
def test_means_in_half_precision_stay_near_and_never_overflow(semantics: str, overlap: float) -> None:
    """Bytes weighed by nnU-Net's Gaussian: summed as they are, they would leave float16's range."""
    plan = plan_tiles((30, 20, 20), (12, 12, 12), Tiling(semantics=semantics, overlap=overlap))
    exact = stitched(Stitcher(plan, 2), plan, plan, np.uint8)
    near = stitched(Fp16Stitcher(plan, 2), plan, plan, np.uint8)
    each = max(len(starts) for starts in plan.starts)
    assert np.abs(near - exact).max() <= 8 * each * HALF_STEP * exact.max()


def test_scores_beyond_half_precision_are_taken_as_its_largest() -> None:
    plan = plan_tiles((4, 4, 4), (4, 4, 4), Tiling())
    stitcher = Fp16Stitcher(plan, 2)
    scores = np.stack([np.full(plan.roi, 1e30), np.full(plan.roi, -1e30)])
    list(stitcher.add(next(iter(plan)), scores.astype(np.float32)))
    planes = next(stitcher.finish())
    assert (planes[0] == 65504).all()
    assert (planes[1] == -65504).all()


def test_scores_at_both_ends_of_half_precision_cancel_out() -> None:
    """Their difference is beyond its range."""
    plan = plan_tiles((4, 4, 6), (4, 4, 4), Tiling(overlap=0.5, mode="constant"))
    stitcher = Fp16Stitcher(plan, 1)
    for tile, value in zip(plan, (60000, -60000), strict=True):
        list(stitcher.add(tile, np.full((1, 4, 4, 4), value, np.float16)))
    found = np.concatenate([planes.copy() for planes in stitcher.finish()], axis=1)
    np.testing.assert_allclose(found[0, 0, 0], [60000, 60000, 0, 0, -60000, -60000], atol=40)


def smooth_scores(plan: TilePlan, classes: int) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Each tile with its part of smooth logits of a phantom, and a little of its own."""
    full = smooth_logits(plan.image, classes)
    for tile in plan:
        noise = np.random.default_rng(tile.index).normal(0, 0.2, (classes, *plan.roi))
        yield tile, (full[(slice(None), *tile.slices)] + noise).astype(np.float32)


def test_half_precision_flips_few_voxels_of_a_phantom() -> None:
    plan = plan_tiles((48, 48, 48), (24, 24, 24), Tiling(overlap=0.5))
    labels = []
    for kind in (Stitcher, Fp16Stitcher):
        stitcher = kind(plan, 5)
        planes = [part.argmax(0) for tile, scores in smooth_scores(plan, 5) for part in stitcher.add(tile, scores)]
        labels.append(np.concatenate([*planes, *(part.argmax(0) for part in stitcher.finish())]))
    changed = (labels[0] != labels[1]).mean()
    assert 0 < changed < 2e-3
