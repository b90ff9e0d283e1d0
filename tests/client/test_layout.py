"""The mark in memory that the server is to write to: no unwritten scores are taken for an answer, of whatever type."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxtile.triton.layout import MARK_BYTES, check_finite, holds_mark, mark_unwritten

SHAPES = [(1, 1, 7, 5, 3), (2, 3, 4, 8, 8), (4, 2, 16, 16, 16), (1, 1, 48), (1, 1, 1, 1, 1), (3, 2, 5)]


def stale(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """What an earlier answer has left."""
    return np.random.default_rng(3).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_not_written_is_noticed_and_what_was_written_is_not(shape: tuple[int, ...], dtype: str) -> None:
    scores = stale(shape, dtype)
    mark = mark_unwritten(scores)
    assert holds_mark(scores, mark)
    assert holds_mark(scores.copy(), mark)
    volume = math.prod(shape[2:]) * scores.itemsize
    for seed in range(50 if volume >= MARK_BYTES else 0):  # a smaller volume may hold the mark by chance
        written = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
        assert not holds_mark(written, mark)
    assert not holds_mark(~scores.view(np.uint8), mark)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_every_score_volume_has_to_be_written_from_its_beginning_to_its_end(dtype: str) -> None:
    shape = (2, 3, 8, 9, 10)
    for batch, score in np.ndindex(2, 3):
        for left in ("all", "beginning", "end"):
            scores = stale(shape, dtype)
            mark = mark_unwritten(scores)
            answer = np.full(shape, 7, dtype)
            kept, old = answer[batch, score].reshape(-1), scores[batch, score].reshape(-1)
            part = {"all": slice(None), "beginning": slice(0, 40), "end": slice(-40, None)}[left]
            kept[part] = old[part]
            assert holds_mark(answer, mark), (batch, score, left)


def test_a_constant_answer_of_any_value_counts_as_written() -> None:
    """An answer that is background everywhere is the commonest, and so is the memory of one."""
    for value in range(256):
        scores = np.full((2, 2, 8, 8, 8), value, np.uint8)
        mark = mark_unwritten(scores)
        assert holds_mark(scores, mark)
        assert not holds_mark(np.full_like(scores, value), mark)


def test_the_middle_is_marked_too_and_not_always_at_one_place() -> None:
    places = set()
    for _ in range(40):
        scores = np.zeros((1, 1, 4096), np.uint8)
        mark = mark_unwritten(scores)
        assert MARK_BYTES <= mark.middle <= 4096 - 2 * MARK_BYTES
        places.add(mark.middle)
        written = np.ones_like(scores)
        written[..., mark.middle : mark.middle + MARK_BYTES] = scores[..., mark.middle : mark.middle + MARK_BYTES]
        assert holds_mark(written, mark)
    assert len(places) > 20


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(dtype: type, wrong: float) -> None:
    scores = np.zeros((2, 3, 8, 8, 8), dtype)
    check_finite(scores)
    scores[1, 2, 3, 4, 5] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_finite(scores)
