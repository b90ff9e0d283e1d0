"""The measure of the entry that averages: what it lets pass, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.certificate.mean_error import FREE_SIZE, NUMPY_TYPES, error_of, mean_error

Array = NDArray[Any]
KINDS = pytest.mark.parametrize("kind", NUMPY_TYPES, ids=lambda kind: NUMPY_TYPES[kind].__name__)


def config(kind: int, dims: tuple[int, ...] = (3, 5, 6, 7), folds: int = 3, batch: int = 2) -> pb.ModelConfig:
    made = pb.ModelConfig(name="mean", max_batch_size=batch)
    for index in range(folds):
        made.input.add(name=f"scores_{index}", data_type=kind, dims=dims)
    return made


def mean(scores: Mapping[str, Array]) -> Array:
    """As the entry does it: summed in fp32, rounded to the output's data type."""
    first = next(iter(scores.values()))
    average = np.mean([one.astype(np.float32) for one in scores.values()], axis=0, dtype=np.float32)
    return (np.rint(average) if first.dtype == np.uint8 else average).astype(first.dtype)


@KINDS
def test_a_mean_that_only_rounds_is_within_the_limit(kind: int) -> None:
    error, limit = mean_error(config(kind), mean)
    assert 0 < error <= limit


@KINDS
def test_a_member_that_is_left_out_or_counted_twice_is_beyond_it(kind: int) -> None:
    def without_the_last(scores: Mapping[str, Array]) -> Array:
        return mean(dict(list(scores.items())[:-1]))

    def first_twice(scores: Mapping[str, Array]) -> Array:
        return mean({**scores, "again": scores["scores_0"]})

    for wrong in (without_the_last, first_twice):
        error, limit = mean_error(config(kind), wrong)
        assert error > 2 * limit


@KINDS
def test_one_wrong_voxel_of_the_largest_batch_is_beyond_it(kind: int) -> None:
    def spoilt(scores: Mapping[str, Array]) -> Array:
        result = mean(scores)
        result[-1, -1, -1, -1, -1] += 2
        return result

    error, limit = mean_error(config(kind), spoilt)
    assert error > limit


def test_tensors_have_the_largest_batch_and_sizes_that_requests_choose() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def watched(scores: Mapping[str, Array]) -> Array:
        seen.update({name: value.shape for name, value in scores.items()})
        return mean(scores)

    mean_error(config(pb.TYPE_FP32, dims=(2, -1, -1), folds=2, batch=4), watched)
    assert seen == {f"scores_{index}": (4, 2, FREE_SIZE, FREE_SIZE) for index in range(2)}


def test_an_error_that_is_no_number_is_not_within_the_limit() -> None:
    error, limit = mean_error(config(pb.TYPE_FP32), lambda scores: mean(scores) * np.float32(np.nan))
    assert not error <= limit


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 8e-6), (np.float16, 8e-3), (np.uint8, 0.5)])
def test_the_limit_is_a_few_roundings_of_the_type_or_half_a_step(dtype: type, limit: float) -> None:
    """The largest mean is 8, whatever its sign."""
    sign = 1 if dtype is np.uint8 else -1
    scores = [np.array([[6 * sign, 1]], dtype), np.array([[10 * sign, 2]], dtype)]
    found = np.array([[8 * sign, 1]], dtype)
    assert error_of(found, scores) == (0.5, pytest.approx(limit))
    assert error_of(np.array([[8.25 * sign, 1.5]]), scores)[0] == 0.25
    assert error_of(scores[0], scores[:1])[0] == 0.0


def given(kind: int, dims: tuple[int, ...] = (3, 20, 21, 22)) -> dict[str, Array]:
    seen: dict[str, Array] = {}

    def watched(scores: Mapping[str, Array]) -> Array:
        seen.update(scores)
        return mean(scores)

    mean_error(config(kind, dims), watched)
    return seen


@KINDS
def test_every_fold_has_scores_of_its_own_in_the_entrys_type_and_the_same_each_time(kind: int) -> None:
    first, again = given(kind), given(kind)
    assert list(first) == ["scores_0", "scores_1", "scores_2"]
    assert {scores.dtype.type for scores in first.values()} == {NUMPY_TYPES[kind]}
    for name, scores in first.items():
        np.testing.assert_array_equal(scores, again[name])
    assert not np.array_equal(first["scores_0"], first["scores_1"])


def test_scores_have_both_signs_alike_and_bytes_have_every_value() -> None:
    for scores in given(pb.TYPE_FP32).values():
        assert abs(scores.mean()) < 0.3
        assert abs(scores.std() - 10) < 0.3
    for scores in given(pb.TYPE_UINT8).values():
        assert set(np.unique(scores)) == set(range(256))


def test_an_axis_of_one_voxel_stays_one() -> None:
    assert given(pb.TYPE_FP32, (2, 1, 5, -1))["scores_0"].shape == (2, 2, 1, 5, FREE_SIZE)
