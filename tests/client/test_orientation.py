"""One type for permutation and flips: every orientation, there and back, against nibabel's own functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations

from tests.support.phantoms import ORIENTATIONS, affine_of, restored_as
from voxtile.io.orientation import LPS_TO_RAS, Orientation

SHAPE = (4, 5, 6)
OBLIQUE = (14.0, -27.0, 33.0)


@pytest.mark.parametrize("stored", ORIENTATIONS)
@pytest.mark.parametrize("wanted", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), OBLIQUE])
def test_values_and_affines_turn_as_by_nibabel(stored: str, wanted: str, angles: tuple[float, float, float]) -> None:
    affine, values = affine_of(SHAPE, (1.0, 2.0, 3.0), stored, angles), np.arange(120).reshape(SHAPE)
    expected, place = restored_as(values, affine, wanted)
    turn = Orientation.towards(wanted, affine)
    np.testing.assert_array_equal(turn.apply(values), expected)
    np.testing.assert_array_equal(turn.apply_to_affine(affine, SHAPE), place)
    assert turn.reorder(SHAPE) == expected.shape
    assert orientations.aff2axcodes(turn.apply_to_affine(affine, SHAPE)) == tuple(wanted)


every_orientation = st.builds(
    Orientation,
    st.sampled_from(list(itertools.permutations(range(3)))),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


@given(every_orientation, st.integers(0, 2))
@settings(max_examples=100)
def test_undo_is_the_inverse_of_apply_and_neither_copies(turn: Orientation, lead: int) -> None:
    values = np.arange(120 * 2**lead).reshape(*(2,) * lead, *SHAPE)
    turned = turn.apply(values)
    assert turned.shape == (*(2,) * lead, *turn.reorder(SHAPE))
    np.testing.assert_array_equal(turn.undo(turned), values)
    assert np.shares_memory(turn.undo(turned), values)


@given(every_orientation)
def test_reversed_axes_are_those_of_the_transposed_array(turn: Orientation) -> None:
    values = np.arange(120).reshape(SHAPE)
    np.testing.assert_array_equal(turn.reversed.apply(values), turn.apply(values).transpose(2, 1, 0))
    assert turn.reversed.reversed == turn


def test_the_default_changes_nothing() -> None:
    affine, values = affine_of(SHAPE, angles=OBLIQUE), np.arange(120).reshape(SHAPE)
    np.testing.assert_array_equal(Orientation().apply(values), values)
    np.testing.assert_array_equal(Orientation().apply_to_affine(affine, SHAPE), affine)


def test_lps_is_ras_with_the_first_two_axes_flipped() -> None:
    np.testing.assert_array_equal(LPS_TO_RAS @ [1, 2, 3, 1], [-1, -2, 3, 1])
    np.testing.assert_array_equal(LPS_TO_RAS @ LPS_TO_RAS, np.eye(4))
