"""Classes that are left out of a block can never win in it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.chains.nnunet.block_argmax import candidates


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 12), spread=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_classes_left_out_never_win(seed: int, classes: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    block = random.standard_normal((classes, 3, 4, 5)) + random.standard_normal((classes, 1, 1, 1)) * spread
    block = block.astype(np.float32)
    weights = random.dirichlet(np.full(60, 0.2), 200)
    winners = (block.reshape(classes, -1).astype(float) @ weights.T).argmax(0)
    assert set(winners) <= set(candidates(block.reshape(classes, -1).max(1), block))


def test_distant_classes_are_left_out() -> None:
    block = np.full((40, 4, 4, 4), -9, np.float32)
    block[3], block[7, :, :2], block[7, :, 2:] = 4, 8, 1
    assert list(candidates(block.reshape(40, -1).max(1), block)) == [3, 7]
