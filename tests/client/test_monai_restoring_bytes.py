"""What restoring takes, and how its work is cut, in figures worked out by hand on small grids."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.support.monai_cards import class_card
from voxtile.chains.monai import invert
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes
from voxtile.chains.monai.resample import AxisMap
from voxtile.io.orientation import Orientation
from voxtile.tiling.strips import Strip, whole

Triple = tuple[int, int, int]


def grid_of(scan: Triple, model: Triple) -> Grid:
    """A scan and the model's grid on the same place; both first voxels coincide."""
    x, y, z = (AxisMap(old, new, old / new, 0.0) for old, new in zip(scan, model, strict=True))
    return Grid(scan, Orientation(), (x, y, z), np.eye(4))


def indexed(labels: int) -> Any:
    return class_card(labels, output={"kind": "labels", "scores": 1})


SAME = grid_of((6, 10, 8), (6, 10, 8))
PLANE = 4 * 3 * 10 * 8
"""Bytes of three scores on a plane of it."""


@pytest.mark.parametrize(("planes", "at_once"), [(1, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_unchanged_grid_takes_its_labels_and_ten_bytes_a_voxel_being_decided(
    planes: int, at_once: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invert, "SLAB_BYTES", 3 * PLANE - 1)
    expected = 6 * 10 * 8 + 65_536 + threads * 10 * at_once * 10 * 8
    assert restore_bytes(SAME, class_card(3), planes, threads) == expected


def test_threads_are_those_that_are_worth_it_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invert, "usable_threads", lambda: 3)
    assert restore_bytes(SAME, class_card(3), 5) == restore_bytes(SAME, class_card(3), 5, 3)


def test_labels_of_two_bytes_and_an_activation_are_counted() -> None:
    plain = restore_bytes(SAME, class_card(3), 5, 1)
    wide = class_card(3, labels=[{"name": str(value), "value": value} for value in (0, 1, 256)])
    assert restore_bytes(SAME, wide, 5, 1) - plain == 6 * 10 * 8
    active = class_card(3, output={"kind": "logits", "scores": 3, "activation": "softmax"})
    assert restore_bytes(SAME, active, 5, 1) - plain == 2 * 5 * PLANE  # the scores, and an intermediate


def test_a_strip_takes_only_its_rows() -> None:
    labels = 6 * 10 * 8 + 65_536
    strip = Strip(1, (2, 7), (3, 7))
    assert restore_bytes(SAME, class_card(3), 4, 1, strip) == labels + 10 * 4 * 4 * 8
    active = class_card(3, output={"kind": "logits", "scores": 3, "activation": "softmax"})
    assert restore_bytes(SAME, active, 4, 1, strip) == labels + 10 * 4 * 4 * 8 + 2 * 4 * 3 * 4 * 5 * 8


def test_a_resampled_grid_takes_a_blend_for_each_thread_and_two_planes_of_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two scores, three planes at a time, which read as many: 3·4·6 values become 3·8·6."""
    grid = grid_of((10, 8, 6), (5, 4, 6))
    monkeypatch.setattr(invert, "SLAB_BYTES", 4 * (4 * 2 * 8 * 6) - 1)
    job = 4 * 2 * (3 * 4 * 6 + 3 * (3 * 8 * 6)) + 10 * (3 * 8 * 6)
    for threads in (1, 2):
        found = restore_bytes(grid, class_card(2), 1, threads)
        assert found == 10 * 8 * 6 + 65_536 + threads * job + 2 * (4 * 2 * 4 * 6)


@pytest.mark.parametrize(("model", "largest"), [((6, 12, 4), 48), ((6, 4, 12), 48), ((6, 4, 4), 48), ((6, 7, 12), 84)])
def test_the_largest_of_the_intermediates_counts(model: Triple, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes become 6 · 8 or 8 · 6, and the axis that shrinks does so first."""
    grid = grid_of((6, 6, 8) if model[1] > model[2] else (6, 8, 6), model)
    plane = model[1] * model[2]
    monkeypatch.setattr(invert, "SLAB_BYTES", 4 * 2 * 6 * max(plane, 48))
    expected = 6 * 48 + 65_536 + 4 * 2 * 6 * (plane + 3 * largest) + 10 * 6 * 48 + 4 * 2 * 2 * plane
    assert restore_bytes(grid, class_card(2), 1, 1) == expected


@pytest.mark.parametrize(
    ("scan", "model", "sources", "largest"),
    [
        (6, 20, 19, 19),  # six planes at 0, 3.3, … 16.7 read up to 18
        (50, 3, 3, 50),  # no more than there are
    ],
)
def test_a_job_reads_the_planes_between_its_first_and_its_last(
    scan: int, model: int, sources: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invert, "SLAB_BYTES", 4 * 2 * 4 * scan)
    job = 4 * 2 * 4 * (sources + 3 * largest) + 10 * 4 * scan
    found = restore_bytes(grid_of((scan, 2, 2), (model, 2, 2)), class_card(2), 1, 1)
    assert found == 4 * scan + 65_536 + job + 2 * (4 * 2 * 4)


def test_strips_read_the_rows_around_their_labels() -> None:
    grid = grid_of((5, 8, 6), (5, 4, 6))  # rows 0 … 7 at 0, 0.5, … 3, and the last beyond
    assert grid_strips(grid, class_card(2), 1, 1) == (whole((5, 4, 6), (5, 8, 6)),)
    assert grid_strips(grid, class_card(2), 1, 2) == (Strip(1, (0, 3), (0, 4)), Strip(1, (2, 4), (4, 8)))
    pairs = [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert [strip.rows for strip in grid_strips(grid, class_card(2), 1, 4)] == pairs
    assert [strip.rows for strip in grid_strips(grid, indexed(3), 1, 4)] == [(0, 1), (1, 3), (2, 3), (3, 4)]  # nearest
    assert grid_strips(grid, class_card(2), 2, 2) == (Strip(2, (0, 3), (0, 3)), Strip(2, (3, 6), (3, 6)))


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The axes that are blended, in turn."""
    seen: list[int] = []
    blend = invert.blend

    def noted(values: Any, axis: int, taps: Any) -> Any:
        assert values.flags.c_contiguous, "else `take` copies it first"
        seen.append(axis)
        return blend(values, axis, taps)

    monkeypatch.setattr(invert, "blend", noted)
    return seen


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))))
def test_the_axis_that_shrinks_most_comes_first_in_every_strip(
    order: tuple[int, ...], axes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = dict(zip(order, (20, 22, 40), strict=True))
    model = dict(zip(order, (40, 23, 10), strict=True))
    grid = grid_of((scan[0], scan[1], scan[2]), (model[0], model[1], model[2]))
    plane = max(scan[1] * scan[2], model[1] * model[2])
    monkeypatch.setattr(invert, "SLAB_BYTES", 4 * 2 * 10 * plane)  # ten planes at a time
    scores = np.zeros((2, *grid.shape), np.float32)
    for axis, count in ((1, 1), (1, 3), (2, 3)):
        restorer = Restorer(grid, class_card(2), threads=1)
        for strip in grid_strips(grid, class_card(2), axis, count):
            axes.clear()
            restorer.start_strip(strip)
            restorer.add_planes(scores[:, :, slice(*strip.rows)] if axis == 1 else scores[..., slice(*strip.rows)])
            assert axes[:3] == [axis + 1 for axis in order]
            assert axes == axes[:3] * (len(axes) // 3)


def test_a_job_joins_only_the_planes_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty planes lie on ten, half a plane apart, and are decided four at a time."""
    seen, blend = [], invert.blend

    def noted(values: Any, axis: int, taps: Any) -> Any:
        seen.append(values.shape[1])
        return blend(values, axis, taps)

    monkeypatch.setattr(invert, "blend", noted)
    monkeypatch.setattr(invert, "SLAB_BYTES", 4 * (4 * 2 * 3 * 2))
    restorer = Restorer(grid_of((20, 3, 2), (10, 3, 2)), class_card(2), threads=1)
    for _ in range(2):
        restorer.add_planes(np.zeros((2, 5, 3, 2), np.float32))
    assert seen == [3, 3, 3, 3, 2]  # 0 … 2, 2 … 4, then 4 (which was kept) … 6, 6 … 8, and 8 … 9


def test_jobs_share_no_more_threads_than_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []

    def noted(workers: Any) -> ThreadPoolExecutor:
        pools.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(invert, "ThreadPoolExecutor", noted)
    monkeypatch.setattr(invert, "SLAB_BYTES", 2 * PLANE)
    monkeypatch.setattr(invert, "usable_threads", lambda: 2)
    for threads in (1, 9, None):
        restorer = Restorer(SAME, class_card(3), threads=threads)
        restorer.add_planes(np.zeros((3, 5, 10, 8), np.float32))
        restorer.add_planes(np.zeros((3, 0, 10, 8), np.float32))
        restorer.add_planes(np.zeros((3, 1, 10, 8), np.float32))
    assert pools == [1, 1, 3, 1, 2, 1]
