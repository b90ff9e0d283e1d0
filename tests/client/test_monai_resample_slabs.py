"""How resampling shares its work: slabs of bounded size, bounded threads, the order of axes, the memory it takes."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from voxtile.chains.monai import resample as resampling
from voxtile.chains.monai.resample import AxisMap, blend_axes, resample, resample_bytes, usable_threads

MIB = 1 << 20
FINER, COARSER, SAME = AxisMap(10, 20, 0.5, 0.0), AxisMap(40, 20, 2.0, 0.0), AxisMap(20, 20, 1.0, 0.0)


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of every slab, before and after."""
    seen = []

    def noted(values: Any, taps: Any) -> Any:
        found = blend_axes(values, taps)
        seen.append((values.shape, found.shape))
        return found

    monkeypatch.setattr(resampling, "blend_axes", noted)
    return seen


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The size of every pool of threads."""
    seen = []

    def noted(workers: Any) -> ThreadPoolExecutor:
        seen.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(resampling, "ThreadPoolExecutor", noted)
    return seen


@pytest.mark.parametrize(
    ("first", "planes", "reads"),
    [
        (SAME, [8, 8, 4], [8, 8, 4]),
        (FINER, [8, 8, 4], [5, 5, 2]),  # at 0 … 3.5, 4 … 7.5, and 8 … 9.5, of which the last is the border
        (COARSER, [4, 4, 4, 4, 4], [8, 8, 8, 8, 8]),
    ],
    ids=str,
)
@pytest.mark.parametrize("others", [((10, 5), (6, 8)), ((5, 10), (8, 6))])
def test_a_slab_is_as_large_as_fits_with_its_source(
    first: AxisMap,
    planes: list[int],
    reads: list[int],
    others: Any,
    slabs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The larger plane, of the source or of the result, takes 10·6·4 = 240 bytes, and 8 of them fit."""
    monkeypatch.setattr(resampling, "SLAB_BYTES", 8 * 240 + 239)
    maps = (first, *(AxisMap(old, new, old / new, 0.0) for old, new in others))
    resample(np.zeros((2, *(axis.source for axis in maps)), np.float32), maps, threads=1)
    assert [after[0] for _, after in slabs] == 2 * planes
    assert {before[1:] for before, _ in slabs} == {tuple(old for old, _ in others)}
    assert [before[0] for before, _ in slabs] == 2 * reads


def test_a_plane_that_exceeds_a_slab_is_one(slabs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SLAB_BYTES", 1)
    resample(np.zeros((1, 40, 3, 3), np.float32), (COARSER, AxisMap(3, 2, 1.5, 0.0), AxisMap(3, 3, 1.0, 0.0)))
    assert [after[0] for _, after in slabs] == [1] * 20


def test_no_more_threads_than_asked_or_than_are_worth_it(pools: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.zeros((1, 10, 2, 2), np.float32)
    maps = (FINER, AxisMap(2, 2, 1.0, 0.0), AxisMap(2, 2, 1.0, 0.0))
    resample(source, maps, threads=3)
    for cores in (64, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cores=cores: set(range(cores)))
        assert usable_threads() == min(cores, 4)
        resample(source, maps)
    assert pools == [3, 4, 2]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_the_result_lies_in_memory_as_the_scan_does(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    shape = [5, 6, 7]
    source = np.zeros([shape[axis] for axis in order], np.float32).transpose([order.index(axis) for axis in range(3)])
    source = source[tuple(slice(None, None, flip) for flip in flips)]
    result = resample(source[None], [AxisMap(size, size + 1, 0.9, 0.0) for size in shape])[0]
    assert result.shape == (6, 7, 8)
    assert np.sign(result.strides).tolist() == list(flips)
    assert np.argsort(np.abs(result.strides)).tolist() == np.argsort(np.abs(source.strides)).tolist()


def test_only_the_planes_that_a_slab_reads_are_taken(slabs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SLAB_BYTES", 5 * 4)
    line = AxisMap(1, 1, 1.0, 0.0)
    resample(np.zeros((1, 40, 1, 1), np.float32), (COARSER, line, line), threads=1)
    assert [before[0] for before, _ in slabs] == [4] * 10  # two planes at 0 and 2 read 0 … 3
    slabs.clear()
    resample(np.zeros((1, 10, 1, 1), np.float32), (FINER, line, line), threads=1)
    assert [before[0] for before, _ in slabs] == [4, 4, 4, 3]  # five planes at 0 … 2 read 0 … 3; 7.5 … 9.5 read 7 … 9


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The axes that are blended, in turn."""
    seen: list[int] = []
    blend = resampling.blend

    def noted(values: Any, axis: int, taps: Any) -> Any:
        assert values.flags.c_contiguous, "else `take` copies it first"
        seen.append(axis)
        return blend(values, axis, taps)

    monkeypatch.setattr(resampling, "blend", noted)
    return seen


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_axis_that_shrinks_most_comes_first(order: tuple[int, ...], axes: list[int]) -> None:
    """So that the others have fewer values to work on."""
    targets = dict(zip(order, (20, 60, 50), strict=True))
    sizes = dict(zip(order, (40, 60, 10), strict=True))
    maps = [AxisMap(sizes[axis], targets[axis], sizes[axis] / targets[axis], 0.25) for axis in (1, 2, 3)]
    values = np.zeros((2, *(sizes[axis] for axis in (3, 2, 1))), np.float32).transpose(0, 3, 2, 1)
    assert blend_axes(values, [one.taps for one in maps]).shape == (2, *(targets[axis] for axis in (1, 2, 3)))
    assert axes == list(order)


def test_an_axis_without_taps_stays_as_it_is(axes: list[int]) -> None:
    values = np.random.default_rng(0).random((3, 4, 5)).transpose(2, 1, 0)
    assert blend_axes(values, [None, None]) is values
    found = blend_axes(values, [None, AxisMap(3, 5, 0.5, 0.0).taps])
    np.testing.assert_array_equal(found[..., ::2], values.astype(np.float32))
    assert (found.shape, axes) == ((5, 4, 5), [2])


def test_bytes_are_those_of_the_result_and_five_slabs_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    assert resample_bytes((FINER, COARSER, AxisMap(3, 30, 0.1, 0.0)), 2) == 2 * 20 * 20 * 30 * 4 + 5 * 4 * MIB * 3
