"""Where a request's tensors lie in shared memory, and what is no answer: unwritten, wrong or not finite scores."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.fake_triton import identity_card
from voxtile.card import Card
from voxtile.triton.layout import (
    MARK_BYTES,
    check_answer,
    check_finite,
    check_tensor,
    holds_mark,
    mark_unwritten,
    needed_bytes,
    scores_bytes,
    scores_offset,
)
from voxtile.triton.types import Request

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


def test_huge_scores_whose_sum_is_beyond_any_float_are_finite() -> None:
    largest = np.full((2, 3, 8, 8, 8), np.finfo(np.float32).max, np.float32)
    check_finite(largest)
    check_finite(-largest)
    largest[1, 2, 7, 7, 7] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_finite(largest)


def test_infinities_that_cancel_out_are_not_finite_and_no_warning() -> None:
    scores = np.zeros((1, 1, 8), np.float32)
    scores[0, 0, 2:4] = np.inf, -np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_finite(scores)


def test_whole_numbers_are_always_finite() -> None:
    check_finite(np.full((1, 1, 4), 255, np.uint8))
    check_finite(np.full((1, 1, 4), -1, np.int16))


def test_a_mark_fits_into_every_volume() -> None:
    """Three marks of a volume touch where it has room for just three; a smaller one bears one, at its beginning."""
    for size in range(1, 200):
        scores = np.zeros((1, 2, size), np.uint8)
        mark = mark_unwritten(scores)
        assert len(mark.pattern) == min(size, 16)
        marks = 3 if size >= 48 else 1
        for volume in scores[0]:
            assert volume.tobytes().startswith(mark.pattern)
            assert volume.tobytes().endswith(mark.pattern) or marks == 1
            assert np.count_nonzero(volume) <= marks * len(mark.pattern)
        for place in (0, mark.middle, size - 16)[:marks]:
            written = np.full_like(scores, 7)
            written[0, 1, place : place + 16] = scores[0, 1, place : place + 16]
            assert holds_mark(written, mark), (size, place)


def test_the_mark_is_another_one_each_time_and_its_place_any_between_the_others() -> None:
    marks = [mark_unwritten(np.zeros((1, 1, 50), np.uint8)) for _ in range(200)]
    assert len({mark.pattern for mark in marks}) == len(marks)
    assert {mark.middle for mark in marks} == {16, 17, 18}


# Places ------------------------------------------------------------------------------------------------------


def request(voxels: int, batch: int = 2, statistics: bool = False) -> Request:
    """Tiles of one channel and `voxels` values of two bytes."""
    tiles = np.zeros((batch, 1, 1, 1, voxels), np.int16)
    return Request(0, tiles, np.zeros((1, 2), np.float32) if statistics else None)


@pytest.mark.parametrize(("voxels", "offset"), [(1, 64), (15, 64), (16, 64), (17, 128), (32, 128), (33, 192)])
def test_scores_begin_behind_the_inputs_at_a_multiple_of_64_bytes(voxels: int, offset: int) -> None:
    assert scores_offset(request(voxels)) == offset


def test_scores_begin_behind_the_statistics_too() -> None:
    """Two tiles of 48 bytes, and for each its mean and deviation in fp32: 96 + 16 bytes; with 65 voxels 260 + 16."""
    assert scores_offset(request(24, statistics=True)) == 128
    assert scores_offset(request(65, statistics=True)) == 320


@pytest.mark.parametrize(("dtype", "size"), [("uint8", 1), ("fp16", 2), ("fp32", 4)])
def test_scores_take_a_value_for_every_tile_score_and_voxel(dtype: str, size: int) -> None:
    labels = [{"name": f"label {value}", "value": value} for value in range(3)]
    card = Card(**identity_card(output={"kind": "logits", "dtype": dtype, "scores": 3}, labels=labels))
    tiles = Request(0, np.zeros((2, 1, 4, 5, 6), np.int16), None)
    assert scores_bytes(card, tiles) == 2 * 3 * 120 * size
    assert needed_bytes(card, tiles) == 512 + 2 * 3 * 120 * size  # the tiles take 480 bytes


# Wrong answers -----------------------------------------------------------------------------------------------


def answer(model: str = "unet", version: str = "3", number: str = "17") -> Any:
    return SimpleNamespace(model_name=model, model_version=version, id=number)


def test_an_answer_is_to_this_very_request_of_this_model_and_version() -> None:
    check_answer(answer(), "unet", "3", 17)
    for wrong, message in (
        (answer(model="other"), "the model_name 'unet', found 'other'"),
        (answer(version="2"), "the model_version '3', found '2'"),
        (answer(number="16"), "the id '17', found '16'"),
    ):
        with pytest.raises(ValueError, match=f"^expected an answer with {message}$"):
            check_answer(wrong, "unet", "3", 17)


def test_what_a_server_leaves_out_and_a_version_that_nobody_knows_are_not_compared() -> None:
    check_answer(answer("", "", ""), "unet", "3", 17)
    check_answer(answer(version="2"), "unet", "", 17)
    with pytest.raises(ValueError, match="the id '17'"):
        check_answer(answer("", "", "1"), "unet", "", 17)


def test_a_tensor_has_the_type_and_the_shape_that_were_promised() -> None:
    check_tensor(SimpleNamespace(datatype="FP32", shape=[2, 1, 4]), "FP32", (2, 1, 4))
    for found in ("INT32 [2, 1, 4]", "FP32 [1, 2, 4]", "FP32 [2, 1, 4, 1]", "FP32 []"):
        datatype, shape = found.split(" ", 1)
        wrong = SimpleNamespace(datatype=datatype, shape=[int(size) for size in shape if size.isdigit()])
        with pytest.raises(ValueError, match=re.escape(f"expected scores of FP32 [2, 1, 4], found {found}") + "$"):
            check_tensor(wrong, "FP32", (2, 1, 4))
    with pytest.raises(ValueError, match=r"^expected a tensor 'scores' of FP32 \[2, 1, 4\], found none$"):
        check_tensor(None, "FP32", (2, 1, 4))
