"""nnU-Net's export: pieces, strips, types and refusals; equality is in test_nnunet_exporting_oracle.py."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nnunet_plans import (
    CHAINS,
    export_labels,
    parsed,
    plans,
    scan,
    smooth_logits,
)
from tests.support.strips import fed
from voxtile.chains.nnunet import block_argmax
from voxtile.chains.nnunet.exporting import (
    LabelExporter,
    export_bytes,
    export_strips,
    label_dtype,
)
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import (
    box_slices,
    preprocess,
)
from voxtile.errors import ModelError
from voxtile.tiling.strips import whole


def prepared(changes: dict[str, Any] | None = None, spacing: Any = (2.0, 1.3, 1.2)) -> tuple[NnunetPlan, Any]:
    card = parsed(plans(**(changes or {})))
    return card, preprocess(scan((14, 22, 27)), spacing, card).properties


PIECES = ("upsampled", "separate z", "cubic scores", "no resampling")


@given(cuts=st.lists(st.integers(1, 18), max_size=6), name=st.sampled_from([*PIECES]))
@settings(max_examples=25, deadline=None)
def test_feeding_in_pieces_changes_nothing(cuts: list[int], name: str) -> None:
    card, grid = prepared(*CHAINS[name])
    logits = smooth_logits(grid.shape_after_resampling, 4)
    whole = export_labels(logits, grid, card, n_labels=4)
    exporter = LabelExporter(grid, card, n_labels=4, threads=1)
    edges = sorted({0, logits.shape[1], *(cut for cut in cuts if cut < logits.shape[1])})
    for start, stop in itertools.pairwise(edges):
        planes = logits[:, start:stop].copy()
        exporter.add_planes(planes)
        planes[...] = np.nan  # the feeder may use its memory again
    np.testing.assert_array_equal(exporter.finish(), whole)


@pytest.mark.parametrize("planes", [1, 5, 400])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_without_resampling_the_highest_score_wins_voxel_by_voxel(
    classes: int, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, grid = prepared(*CHAINS["no resampling"])
    shape = grid.shape_after_resampling
    monkeypatch.setattr(block_argmax, "AT_ONCE", planes * shape[1] * shape[2])
    # Rounded, so that classes tie often: the first of them counts.
    logits = np.round(smooth_logits(shape, classes) / 4)
    wanted = np.zeros(grid.shape_before_cropping, np.uint8)
    wanted[box_slices(grid.bbox)] = logits.argmax(0)
    found = export_labels(logits, grid, card, n_labels=classes, threads=2)
    np.testing.assert_array_equal(found, wanted.transpose(card.transpose_backward))


@pytest.mark.parametrize("name", ["upsampled", "no resampling", "cubic scores"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_taken(dtype: Any, name: str) -> None:
    card, grid = prepared(*CHAINS[name])
    logits = smooth_logits(grid.shape_after_resampling, 4).astype(dtype)
    expected = export_labels(logits.astype(np.float32), grid, card, n_labels=4)
    np.testing.assert_array_equal(export_labels(logits, grid, card, n_labels=4), expected)


@pytest.mark.parametrize("n_labels", [2, 255, 256, 300])
def test_label_type_is_nnunets(n_labels: int) -> None:
    expected = np.uint8 if len(range(1, n_labels)) < 255 else np.uint16
    assert label_dtype(n_labels) == expected


def test_many_classes_use_uint16() -> None:
    card, grid = prepared()
    logits = np.zeros((300, *grid.shape_after_resampling), np.float32)
    logits[299, :, :, : logits.shape[3] // 2], logits[257, :, :, logits.shape[3] // 2 :] = 5, 5
    labels = export_labels(logits, grid, card, n_labels=300)
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 257, 299}


def test_equal_scores_go_to_the_first_class() -> None:
    card, grid = prepared()
    logits = np.zeros((3, *grid.shape_after_resampling), np.float32)
    logits[1:] = 1
    assert set(np.unique(export_labels(logits, grid, card, n_labels=3))) == {0, 1}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 9, 9), "expected scores of shape"),
        ((4, 999), "planes of scores, got 999"),
        ((4, 2, 3), "expected scores"),
    ],
)
def test_wrong_scores_are_refused(shape: tuple[int, ...], message: str) -> None:
    card, grid = prepared()
    full = (*shape, *grid.shape_after_resampling[1:]) if len(shape) == 2 else shape
    with pytest.raises(ModelError, match=message):
        LabelExporter(grid, card, n_labels=4).add_planes(np.zeros(full, np.float32))


def test_missing_planes_are_refused() -> None:
    card, grid = prepared()
    exporter = LabelExporter(grid, card, n_labels=4)
    exporter.add_planes(smooth_logits(grid.shape_after_resampling, 4)[:, :3])
    with pytest.raises(ModelError, match="planes of scores, got 3"):
        exporter.finish()


def test_plan_that_cannot_be_exported_is_refused() -> None:
    changes = {"resampling_fn_probabilities": "no_resampling_hack", "resampling_fn_probabilities_kwargs": {}}
    card, grid = prepared(changes)
    with pytest.raises(ModelError, match="resamples scans but not probabilities"):
        LabelExporter(grid, card, n_labels=4)


STREAMING = sorted(set(CHAINS) - {"cubic scores"})


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("regions", [None, [1, 3, 2]])
def test_nnunets_labels_of_strips_are_those_of_the_whole_bit_for_bit(name: str, regions: list[int] | None) -> None:
    changes, spacing = CHAINS[name]
    plan = plans(**changes)
    card, heads = parsed(plan), 4 if regions is None else 3
    grid = preprocess(scan((14, 75, 68), card.channels), spacing, card).properties
    logits = smooth_logits(grid.shape_after_resampling, heads)
    uncut = LabelExporter(grid, card, n_labels=4, regions_class_order=regions, threads=1)
    uncut.add_planes(logits)
    expected = uncut.finish()
    for axis, count in ((1, 2), (2, 2), (2, 99)):
        strips = export_strips(grid, card, axis, count)
        assert 1 < len(strips) <= count or grid.shape_after_cropping[axis] <= 32
        exporter = LabelExporter(grid, card, n_labels=4, regions_class_order=regions, threads=1)
        fed(exporter, logits, strips, (3, 5))
        np.testing.assert_array_equal(exporter.finish(), expected)


def test_a_plan_that_resamples_scores_by_order_three_is_not_cut() -> None:
    changes, spacing = CHAINS["cubic scores"]
    card = parsed(plans(**changes))
    grid = preprocess(scan((14, 75, 68)), spacing, card).properties
    assert export_strips(grid, card, 1, 2) == (whole(grid.shape_after_resampling, grid.shape_after_cropping),)


@pytest.mark.parametrize("name", ["upsampled", "downsampled", "separate z", "cubic scores", "no resampling"])
@pytest.mark.parametrize("count", [1, 2])
def test_nnunets_export_takes_no_more_than_predicted(name: str, count: int) -> None:
    changes, spacing = CHAINS[name]
    card = parsed(plans(**changes))
    grid = preprocess(scan((40, 75, 68)), spacing, card).properties
    strips = export_strips(grid, card, 1, count)
    planes = [np.zeros((9, 7, *strip.narrowed(grid.shape_after_resampling)[1:]), np.float32) for strip in strips]
    tracemalloc.start()
    exporter = LabelExporter(grid, card, n_labels=9, threads=1)
    for strip, part in zip(strips, planes, strict=True):
        exporter.start_strip(strip)
        for first in range(0, grid.shape_after_resampling[0], 7):
            exporter.add_planes(part[:, : min(7, grid.shape_after_resampling[0] - first)])
    labels = exporter.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * labels.nbytes + max(export_bytes(grid, card, 9, strip) for strip in strips) + (1 << 20)
