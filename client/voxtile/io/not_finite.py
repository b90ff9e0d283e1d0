"""Finds voxels that are no numbers, and refuses or replaces them. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.given import Given
from voxtile.io.scaling import CHUNK, flat


class _Kind(NamedTuple):
    """Values that are no numbers.

    Attributes:
        option: the field of `Given` that replaces them.
        words: what they are called.
        is_it: finds them in an array.
    """

    option: str
    words: str
    is_it: Callable[[NDArray[Any]], NDArray[np.bool_]]


KINDS = (
    _Kind("nan", "NaN", np.isnan),
    _Kind("posinf", "infinity", np.isposinf),
    _Kind("neginf", "minus infinity", np.isneginf),
)


def made_finite(values: NDArray[Any], given: Given, name: str) -> tuple[NDArray[Any], list[str]]:
    """Returns `values` with what is given in place of NaN and infinities, and what was replaced, in words.

    Args:
        values: [i, j, k, …] in C or Fortran order. They are never changed; replaced values are in a copy.
        given: what is to be replaced, and by what.
        name: what messages call the scan.

    Raises:
        InputError: values that are not to be replaced are not finite; with their number and the first position.
    """
    if values.dtype.kind != "f" or _are_finite(values):
        return values, []
    found = [(kind, count) for kind in KINDS if (count := _count(values, kind))]
    refused = [(kind, count) for kind, count in found if getattr(given, kind.option) is None]
    if refused:
        raise _error(values, [kind for kind, _ in refused], sum(count for _, count in refused), name)
    values = values.copy(order="K")
    line = flat(values)
    for kind, _ in found:
        for start in range(0, line.size, CHUNK):
            part = line[start : start + CHUNK]
            part[kind.is_it(part)] = getattr(given, kind.option)
    return values, [f"{kind.words} -> {getattr(given, kind.option):g} in {count:,} voxels" for kind, count in found]


def _are_finite(values: NDArray[Any]) -> bool:
    line = flat(values)
    return all(bool(np.isfinite(line[start : start + CHUNK]).all()) for start in range(0, line.size, CHUNK))


def _count(values: NDArray[Any], kind: _Kind) -> int:
    line = flat(values)
    return sum(int(np.count_nonzero(kind.is_it(line[start : start + CHUNK]))) for start in range(0, line.size, CHUNK))


def _error(values: NDArray[Any], kinds: list[_Kind], count: int, name: str) -> InputError:
    line = flat(values)
    for first in range(0, line.size, CHUNK):
        wrong = np.logical_or.reduce([kind.is_it(line[first : first + CHUNK]) for kind in kinds])
        if wrong.any():
            first += int(np.argmax(wrong))
            break
    backwards = values.flags.f_contiguous
    place = np.unravel_index(first, values.shape[::-1] if backwards else values.shape)
    where = tuple(int(index) for index in (place[::-1] if backwards else place))
    where = where[:3] if values.shape[3:] == (1,) else where
    options = " ".join(f"--{kind.option} VALUE" for kind in kinds)
    return InputError(
        f"{name}: expected finite voxels, found {count:,} that are NaN, infinite or beyond float32, the first at voxel "
        f"{where}; repair the scan, or have them replaced (most often by 0): {options}"
    )
