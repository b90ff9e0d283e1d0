"""Halves in integer steps: every value there is, as NumPy itself widens it, and no infinity overlooked."""

from __future__ import annotations

import numpy as np
import pytest

from voxtile.half_floats import CHUNK, all_finite, as_float32, widen

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def test_every_half_is_widened_as_numpy_does_it() -> None:
    assert FINITE.size == 2 * 31 * 1024
    wide = as_float32(FINITE)
    np.testing.assert_array_equal(wide.view(np.uint32), FINITE.astype(np.float32).view(np.uint32))


def test_parts_of_arrays_are_widened_into_parts_of_arrays() -> None:
    halves = FINITE[: 24 * 30 * 40].reshape(24, 30, 40)
    out = np.full((30, 32, 48), 7, np.float32)
    widen(halves[::-1, 3:20, ::2], out[2:26, 5:22, 4:24])
    wanted = np.full_like(out, 7)
    wanted[2:26, 5:22, 4:24] = halves[::-1, 3:20, ::2]
    np.testing.assert_array_equal(out.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_other_types_are_widened_too(dtype: type[np.generic]) -> None:
    values = np.arange(100).astype(dtype)
    assert as_float32(values).dtype == np.float32
    np.testing.assert_array_equal(as_float32(values), values)


def test_what_is_widened_is_new() -> None:
    values = np.ones(3, np.float32)
    as_float32(values)[:] = 2
    np.testing.assert_array_equal(values, 1)


def test_all_halves_that_are_finite_are_found_to_be() -> None:
    assert all_finite(FINITE)
    assert all_finite(np.empty((0, 3), np.float16))


@pytest.mark.parametrize("bad", EVERY[~np.isfinite(EVERY)][::173].tolist())
@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 9])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(bad: float, place: int) -> None:
    values = np.ones((2, CHUNK + 5), np.float16)
    values.reshape(-1)[place] = bad
    assert not all_finite(values)
