"""Values in pieces, as they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

from voxtile.io.scaling import chunks, memory_order


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("view", ["plain", "flipped", "turned", "cropped", "thinned"])
def test_chunks_walk_through_every_value_once(order: str, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.io.scaling.CHUNK", 7)
    values = np.array(np.arange(4 * 5 * 6).reshape(4, 5, 6), order=order)
    views = {
        "plain": values,
        "flipped": values[::-1, :, ::-1],
        "turned": values.transpose(1, 2, 0),
        "cropped": values[:, 1:4],
        "thinned": values[::2, ::-2, 1::2],
    }
    parts = list(chunks(views[view]))
    assert sorted(np.concatenate(parts).tolist()) == sorted(views[view].ravel().tolist())
    assert max(map(len, parts)) <= 7
    assert len(parts) <= views[view].size / 2, "pieces of one value each take forever"


def test_memory_order_is_slowest_first() -> None:
    assert memory_order(np.zeros((2, 3, 4))) == (0, 1, 2)
    assert memory_order(np.zeros((2, 3, 4), order="F")) == (2, 1, 0)
    assert memory_order(np.zeros((2, 3, 4)).transpose(1, 2, 0)[::-1]) == (2, 0, 1)
