"""The zoom of one axis as a matrix, against scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import zoom

from voxtile.chains.nnunet.axis_zoom import AxisZoom

MATRIX_TOLERANCE = 1e-12  # scipy's recursive filter and the closed form differ by float64's rounding only


def matrix(axis: AxisZoom) -> NDArray[np.float64]:
    """The whole matrix [n_out, n_in] of a zoom in float64."""
    whole = np.zeros((axis.n_out, axis.n_in))
    whole[:, axis.support(0, axis.n_out)] = axis.block(0, axis.n_out)
    return whole


def zoom_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """That of `skimage.transform.resize(mode="edge", anti_aliasing=False)` along one axis."""
    return matrix(AxisZoom(n_in, n_out, order, dtype=np.float64))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_matrix_is_scipys_zoom_of_the_identity(order: int) -> None:
    sizes = [1, 2, 3, 4, 5, 7, 12, 17, 33, 64]
    for n_in, n_out in itertools.product(sizes, [1, 2, 3, 5, 8, 9, 13, 17, 50, 77]):
        expected = zoom(np.eye(n_in), (n_out / n_in, 1), order=order, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(zoom_matrix(n_in, n_out, order), expected, atol=MATRIX_TOLERANCE)


@given(n_in=st.integers(1, 700), n_out=st.integers(1, 700), order=st.sampled_from([0, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_matrix_keeps_constants(n_in: int, n_out: int, order: int) -> None:
    np.testing.assert_allclose(zoom_matrix(n_in, n_out, order).sum(1), 1, atol=MATRIX_TOLERANCE)


@given(n_in=st.integers(1, 300), n_out=st.integers(2, 300), order=st.sampled_from([0, 1, 3]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_block_of_rows_is_a_part_of_the_matrix(n_in: int, n_out: int, order: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n_out - 1))
    stop = data.draw(st.integers(start + 1, n_out))
    axis = AxisZoom(n_in, n_out, order, dtype=np.float64)
    embedded = np.zeros((stop - start, n_in))
    embedded[:, axis.support(start, stop)] = axis.block(start, stop)
    np.testing.assert_array_equal(embedded, matrix(axis)[start:stop])
