"""The zoom of one axis: torch's positions, how far a voxel sees, and products with a slab in any part and block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtile.chains.nnunet.axis_zoom import (
    AxisZoom,
    Rule,
    Scratch,
    axis_zoom,
    check_order,
    sample_positions,
    zoom_first_axis,
    zoom_last_axis,
    zoom_middle_axis,
)

SINGLE = 1e-6
KINDS: list[tuple[int, Rule]] = [(0, "scipy"), (1, "scipy"), (3, "scipy"), (0, "torch"), (1, "torch")]


def matrix(n_in: int, n_out: int, order: int, rule: Rule) -> NDArray[np.float64]:
    """[n_out, n_in], one row at a time."""
    axis, whole = AxisZoom(n_in, n_out, order, rule, dtype=np.float64), np.zeros((n_out, n_in))
    for row in range(n_out):
        whole[row, axis.support(row, row + 1)] = axis.block(row, row + 1)[0]
    return whole


def test_centres_of_output_voxels_lie_half_a_voxel_inside() -> None:
    np.testing.assert_allclose(sample_positions(4, 8), [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25])
    np.testing.assert_allclose(sample_positions(9, 3), [1, 4, 7])


def test_the_nearest_voxel_of_a_half_is_the_higher_one() -> None:
    np.testing.assert_array_equal(AxisZoom(8, 4, 0).columns[:, 0], [1, 3, 5, 7])  # at 0.5, 2.5, …
    np.testing.assert_array_equal(AxisZoom(3, 7, 0).columns[:, 0], [0, 0, 1, 1, 1, 2, 2])


def test_torchs_nearest_voxel_is_decided_in_float32() -> None:
    """66.5 · 20/133 is 10, and less in float32; 24.5 · 20/490 is 1, and less in float64. As torch itself answers."""
    assert AxisZoom(20, 133, 0, "torch").columns[66] == 9
    assert AxisZoom(20, 490, 0, "torch").columns[24] == 1
    np.testing.assert_array_equal(AxisZoom(5, 8, 0, "torch").columns[:, 0], [0, 0, 1, 2, 2, 3, 4, 4])
    assert AxisZoom(5, 8, 0, "torch").columns.dtype == np.int64


def test_torchs_linear_weights_are_scipys_but_for_rounding() -> None:
    for n_in, n_out in ((5, 8), (9, 4), (1, 3), (7, 1), (31, 77)):
        np.testing.assert_allclose(matrix(n_in, n_out, 1, "torch"), matrix(n_in, n_out, 1, "scipy"), atol=1e-5)
    assert not np.array_equal(AxisZoom(31, 77, 1, "torch").weights, AxisZoom(31, 77, 1, "scipy").weights)
    shares = AxisZoom(31, 77, 1, "torch").weights[20]
    position = np.float32(np.float32(20.5) * (np.float32(31) / np.float32(77))) - np.float32(0.5)
    np.testing.assert_array_equal(shares, [8 - float(position), float(position) - 7])


@pytest.mark.parametrize(("dtype", "voxels"), [(np.float32, 34), (np.float64, 60)])
def test_a_cubic_zoom_sees_four_voxels_and_those_that_its_prefilter_reaches(dtype: Any, voxels: int) -> None:
    axis = AxisZoom(200, 300, 3, dtype=dtype)
    reads = axis.support(150, 151)
    assert reads.stop - reads.start == voxels
    assert reads.start + (reads.stop - 1) == 99 + 100  # as many on either side of 99.83
    assert axis.block(150, 151).dtype == dtype


def test_the_prefilter_of_float32_is_cut_below_its_rounding() -> None:
    single, double = (AxisZoom(200, 300, 3, dtype=dtype) for dtype in (np.float32, np.float64))
    for row in (0, 1, 150, 299):
        dense = np.zeros((2, 200))
        for line, axis in zip(dense, (single, double), strict=True):
            line[axis.support(row, row + 1)] = axis.block(row, row + 1)[0]
        np.testing.assert_allclose(dense[0], dense[1], atol=2.0**-24)


@pytest.mark.parametrize(("order", "step"), [(0, 32), (1, 32), (3, 64)])
def test_output_voxels_come_in_blocks(order: int, step: int) -> None:
    assert list(AxisZoom(5, 2 * step + 3, order).spans()) == [
        (0, step),
        (step, 2 * step),
        (2 * step, 2 * step + 3),
    ]


def test_a_block_is_made_once() -> None:
    axis = AxisZoom(9, 20, 1)
    assert axis.block(3, 7) is axis.block(3, 7)
    assert axis.block(3, 7).shape == (4, axis.support(3, 7).stop - axis.support(3, 7).start)


def test_one_zoom_serves_all_who_ask_for_the_same() -> None:
    axis = axis_zoom(9, 20, 1, "torch", True)
    assert axis is not None
    assert axis_zoom(9, 20, 1, "torch", True) is axis
    assert (axis.n_in, axis.n_out, axis.order, axis.dtype) == (9, 20, 1, np.float64)
    np.testing.assert_array_equal(axis.weights, AxisZoom(9, 20, 1, "torch").weights)
    single = axis_zoom(9, 20, 1, "scipy", False)
    assert single is not None
    assert single.dtype == np.float32
    assert axis_zoom(9, 9, 3, "scipy", False) is None


@pytest.mark.parametrize(("n_in", "n_out"), [(0, 4), (4, 0)])
def test_an_axis_without_voxels_is_refused(n_in: int, n_out: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 voxel, got {n_in} voxels to be resampled to {n_out}"):
        AxisZoom(n_in, n_out, 1)
    assert AxisZoom(1, 1, 1).block(0, 1) == 1


@pytest.mark.parametrize("order", [-1, 2, 4, None])
def test_another_order_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match=f"expected a spline order of 0, 1 or 3, got {order}"):
        check_order(order)


SIZES = [(7, 70), (7, 140), (90, 33), (5, 3)]


@pytest.mark.parametrize(("order", "rule"), KINDS)
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_a_slab_is_zoomed_along_any_axis(n_in: int, n_out: int, order: int, rule: Rule) -> None:
    axis, full, scratch = AxisZoom(n_in, n_out, order, rule), matrix(n_in, n_out, order, rule), Scratch(np.float32)
    random = np.random.default_rng(n_in)
    along = [random.random([n_in if a == at else 2 + a for a in range(3)]).astype(np.float32) for at in range(3)]
    middle = zoom_middle_axis(along[1], axis, scratch)
    np.testing.assert_allclose(middle, np.einsum("oi,aib->aob", full, along[1]), atol=SINGLE)
    last = zoom_last_axis(along[2], axis, scratch)
    np.testing.assert_allclose(last, np.einsum("oi,abi->abo", full, along[2]), atol=SINGLE)
    wanted = np.einsum("oi,iab->oab", full, along[0])
    for start, stop in ((0, n_out), (0, 1), (n_out - 2, n_out), (n_out // 3, n_out // 2 + 1)):
        first = zoom_first_axis(along[0][axis.support(start, stop)], axis, start, stop, scratch)
        np.testing.assert_allclose(first, wanted[start:stop], atol=SINGLE)
        assert first.dtype == np.float32
    assert middle.dtype == last.dtype == np.float32


def test_an_axis_that_is_not_zoomed_stays_as_it_is() -> None:
    slab, scratch = np.zeros((3, 4, 5)), Scratch(np.float64)
    assert zoom_first_axis(slab, None, 0, 2, scratch) is slab
    assert zoom_middle_axis(slab, None, scratch) is slab
    assert zoom_last_axis(slab, None, scratch) is slab


@pytest.mark.parametrize(("order", "rule"), KINDS)
def test_results_lie_in_the_scratch(order: int, rule: Rule) -> None:
    """New memory for every slab costs more than the products in it."""
    scratch, axis, slab = Scratch(np.float32), AxisZoom(7, 40, order, rule), np.ones((7, 7, 7), np.float32)
    for name, zoom in (
        ("first", lambda: zoom_first_axis(slab[axis.support(3, 9)], axis, 3, 9, scratch)),
        ("middle", lambda: zoom_middle_axis(slab, axis, scratch)),
        ("last", lambda: zoom_last_axis(slab, axis, scratch)),
    ):
        zoomed = zoom()
        assert np.shares_memory(zoomed, scratch.array(name, zoomed.size))
        assert np.shares_memory(zoomed, zoom())


def test_scratch_is_used_again_until_more_is_needed() -> None:
    scratch = Scratch(np.float32)
    first = scratch.array("a", 3, 4)
    assert (first.shape, first.dtype) == ((3, 4), np.float32)
    assert np.shares_memory(first, scratch.array("a", 2, 6))
    assert np.shares_memory(first, scratch.array("a", 5))
    assert not np.shares_memory(first, scratch.array("b", 3, 4))
    more = scratch.array("a", 13)
    assert not np.shares_memory(first, more)
    assert np.shares_memory(more, scratch.array("a", 3, 4))


def test_what_is_contiguous_and_of_the_type_is_not_copied() -> None:
    scratch, source = Scratch(np.float32), np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    assert scratch.contiguous("a", source) is source
    for other in (source.transpose(2, 0, 1), source.astype(np.float64), source[:, ::2]):
        copy = scratch.contiguous("a", other)
        np.testing.assert_array_equal(copy, other)
        assert (copy.dtype, copy.flags.c_contiguous) == (np.float32, True)
        assert np.shares_memory(copy, scratch.array("a", 1))
