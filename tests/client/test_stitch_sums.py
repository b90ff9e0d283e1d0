"""Stitching against its definition: every voxel's weighted mean over its tiles, in float64 and one tile at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.strips import rows, scores_of, stitched
from voxtile.card import Tiling
from voxtile.tiling import stitch
from voxtile.tiling.plan import TilePlan, plan_tiles
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip, tiles_of

BACKGROUND = np.array([7, -3], np.float32)

ERRORS = {Stitcher: 1e-4, Fp16Stitcher: 0.4}
"""Scores are below 100: some roundings of float32, and of float16, which rounds a mean up to 100 by 0.03 each time."""


@dataclass(frozen=True)
class Case:
    """A volume, its tiles, and the strip whose scores are asked for."""

    image: tuple[int, int, int]
    roi: tuple[int, int, int]
    tiling: Tiling
    strip: Strip | None = None


CASES = {
    "gaussian": Case((11, 9, 13), (6, 4, 5), Tiling(overlap=0.5)),
    "constant, overlap of three": Case((13, 7, 8), (6, 4, 8), Tiling(overlap=0.7, mode="constant")),
    "nnunet": Case((12, 9, 10), (5, 7, 4), Tiling(semantics="nnunet", overlap=0.5)),
    "no overlap": Case((9, 5, 7), (3, 4, 7), Tiling(overlap=0.0)),
    "padded along all axes": Case((5, 6, 3), (8, 7, 8), Tiling()),
    "padded along the first": Case((3, 11, 9), (8, 4, 4), Tiling(overlap=0.25)),
    "one plane thick": Case((5, 9, 8), (1, 4, 5), Tiling(overlap=0.5)),
    "a strip in the middle": Case((8, 19, 5), (4, 6, 4), Tiling(overlap=0.5), Strip(1, (7, 12), (7, 12))),
    "a strip narrower than a tile": Case((8, 5, 19), (4, 3, 8), Tiling(overlap=0.25), Strip(2, (9, 11), (9, 11))),
    "the last strip": Case((8, 5, 19), (4, 3, 8), Tiling(overlap=0.25), Strip(2, (12, 19), (12, 19))),
    "a strip of a padded axis": Case((7, 5, 6), (4, 8, 4), Tiling(overlap=0.25), Strip(1, (1, 4), (1, 4))),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kind", [Stitcher, Fp16Stitcher])
def test_scores_are_the_weighted_means_of_all_tiles_at_a_voxel(
    kind: type[Stitcher], case: Case, skipping: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stitch, "SCRATCH_BYTES", 300)  # so that a tile is worked on in several portions
    plan = plan_tiles(case.image, case.roi, case.tiling)
    skipped = set(range(1, len(plan), 3)) if skipping else set()
    stitcher = kind(plan, 2, BACKGROUND if skipping else None, case.strip)
    tiles = plan if case.strip is None else tiles_of(plan, case.strip)
    expected = by_definition(plan, dtype, skipped)
    if case.strip is not None:
        expected = rows(expected, case.strip.axis, case.strip.rows)
    found = stitched(stitcher, tiles, plan, dtype, skipped)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=ERRORS[kind])


def by_definition(plan: TilePlan, dtype: Any, skipped: set[int]) -> NDArray[np.float64]:
    """[2, *image] Σ score · weight / Σ weight over the tiles that are not left out; background where there is none."""
    sums, weights = np.zeros((2, *plan.padded)), np.zeros(plan.padded)
    for tile in plan:
        if tile.index not in skipped:
            sums[(slice(None), *tile.slices)] += scores_of(tile.index, 2, plan, dtype) * plan.weights.astype(float)
            weights[tile.slices] += plan.weights
    means = np.where(weights > 0, sums / np.where(weights > 0, weights, 1), BACKGROUND[:, None, None, None])
    return means[(slice(None), *(slice(b, b + n) for b, n in zip(plan.before, plan.image, strict=True)))]


def test_cases_leave_some_voxels_without_a_tile_and_cover_others() -> None:
    """Else leaving out would prove nothing."""
    plan = plan_tiles(CASES["no overlap"].image, CASES["no overlap"].roi, CASES["no overlap"].tiling)
    means = by_definition(plan, np.float32, set(range(1, len(plan), 3)))
    assert 0.1 < (means == BACKGROUND[:, None, None, None]).mean() < 0.9
