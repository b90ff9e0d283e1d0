"""Strips against the whole: bit for bit the same sums, however a volume is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.strips import cut_plan, rows, stitched
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.rules.all import RULES
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import tiles_of

sizes, edges = st.integers(1, 22), st.integers(1, 12)

tilings = st.builds(
    Tiling,
    semantics=st.sampled_from(tuple(RULES)),
    overlap=st.sampled_from((0.0, 0.25, 0.5, 0.7)),
    mode=st.sampled_from(("constant", "gaussian")),
)


@given(
    st.tuples(sizes, sizes, sizes), st.tuples(edges, edges, edges), tilings, st.sampled_from((1, 2)),
    st.integers(1, 25), st.sampled_from((np.float32, np.float16, np.uint8)), st.sampled_from((0.0, 0.4)),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_sums_of_strips_are_those_of_the_whole_bit_for_bit(
    image: tuple[int, int, int],
    roi: tuple[int, int, int],
    tiling: Tiling,
    axis: int,
    count: int,
    dtype: Any,
    left_out: float,
) -> None:
    plan = plan_tiles(image, roi, tiling)
    if len(plan) > 400:
        return
    skipped = set(np.flatnonzero(np.random.default_rng(1).random(len(plan)) < left_out).tolist())
    background = np.array([7, -3], np.float32) if skipped else None
    for kind in (Stitcher, Fp16Stitcher):
        expected = stitched(kind(plan, 2, background), plan, plan, dtype, skipped)
        assert expected.shape == (2, *image)
        for strip in cut_plan(plan, axis, count):
            part = stitched(kind(plan, 2, background, strip), tiles_of(plan, strip), plan, dtype, skipped)
            np.testing.assert_array_equal(part, rows(expected, axis, strip.rows))
