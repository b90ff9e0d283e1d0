"""Learned post-processing on components laid out by hand; equality with nnU-Net's own is in the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtile.chains.nnunet.plan import KeepLargest
from voxtile.chains.nnunet.postprocessing import keep_largest, largest_components, postprocess


def keep(*labels: int, background: int = 0) -> KeepLargest:
    return KeepLargest(op="keep_largest", labels=labels, background=background)


def row(*values: int) -> NDArray[np.uint16]:
    return np.array(values, np.uint16).reshape(1, 1, -1)


def test_only_the_largest_component_of_the_labels_stays() -> None:
    seg = row(1, 1, 0, 2, 1, 2, 0, 3, 3, 3, 3, 0, 1)
    found = keep_largest(seg, keep(1, 2))
    np.testing.assert_array_equal(found, row(0, 0, 0, 2, 1, 2, 0, 3, 3, 3, 3, 0, 0))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(keep_largest(seg, keep(1, background=9))[0, 0, -1], 9)
    np.testing.assert_array_equal(keep_largest(seg, keep(7)), seg)


def test_steps_follow_one_another_and_leave_what_they_were_given() -> None:
    seg = row(1, 1, 2, 0, 2, 2, 0, 1)
    before = seg.copy()
    np.testing.assert_array_equal(postprocess(seg, [keep(1, 2), keep(2)]), row(1, 1, 2, 0, 0, 0, 0, 0))
    np.testing.assert_array_equal(postprocess(seg, [keep(2), keep(1, 2)]), row(1, 1, 0, 0, 2, 2, 0, 0))
    np.testing.assert_array_equal(seg, before)
    assert postprocess(seg, []) is seg


@pytest.mark.parametrize("corner", [(1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_voxels_that_share_a_face_an_edge_or_a_corner_are_joined(corner: tuple[int, int, int]) -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[1, 1, 1], mask[tuple(1 + step for step in corner)], mask[4, 4, 4] = True, True, True
    found = largest_components(mask)
    mask[4, 4, 4] = False
    np.testing.assert_array_equal(found, mask)
    assert found.dtype == bool


def test_components_of_the_same_size_stay_and_the_background_is_none() -> None:
    mask = row(1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0).astype(bool)
    np.testing.assert_array_equal(largest_components(mask), row(1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0).astype(bool))
    np.testing.assert_array_equal(largest_components(mask[0, 0]), largest_components(mask)[0, 0])
    nothing = np.zeros((2, 3), bool)
    np.testing.assert_array_equal(largest_components(nothing), nothing)
