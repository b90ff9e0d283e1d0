"""Learned post-processing against nnU-Net's own."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)

from voxtile.chains.nnunet.plan import KeepLargest
from voxtile.chains.nnunet.postprocessing import postprocess


def keep(*labels: int) -> KeepLargest:
    return KeepLargest(op="keep_largest", labels=labels)


STEPS: list[list[list[int]]] = [[[1, 2, 3]], [[1]], [[2], [3]], [[1, 2], [3], [1]]]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("share", [0.1, 0.35])
def test_postprocessing_equals_nnunet(steps: list[list[int]], share: float) -> None:
    random = np.random.default_rng(5)
    seg = (random.integers(1, 4, (18, 20, 22)) * (random.random((18, 20, 22)) < share)).astype(np.uint8)
    functions = [remove_all_but_largest_component_from_segmentation] * len(steps)
    kwargs = [{"labels_or_regions": labels if len(labels) == 1 else [tuple(labels)]} for labels in steps]
    expected = apply_postprocessing(seg, functions, kwargs)
    before = seg.copy()
    found = postprocess(seg, [keep(*labels) for labels in steps])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(seg, before)
    assert found.dtype == expected.dtype


def test_postprocessing_keeps_equally_large_components() -> None:
    seg = np.zeros((4, 9, 4), np.uint8)
    seg[1, 1], seg[1, 5], seg[3, 8, 0] = 1, 1, 1
    expected = remove_all_but_largest_component_from_segmentation(seg, 1)
    np.testing.assert_array_equal(postprocess(seg, [keep(1)]), expected)


def test_postprocessing_of_an_empty_mask() -> None:
    seg = np.zeros((3, 3, 3), np.uint8)
    np.testing.assert_array_equal(postprocess(seg, [keep(1)]), seg)
