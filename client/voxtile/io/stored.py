"""What every source of a scan gives: numbers as stored, how to scale them, a header and an affine.

Knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.geometry import Triple


@dataclass(frozen=True, eq=False)
class Stored:
    """One source of a scan; value = raw · slope + inter.

    Attributes:
        raw: [i, j, k, …] real numbers in native byte order, contiguous in C or Fortran order.
        slope: None for 1.
        inter: None for 0.
        header: a NIfTI-1 or NIfTI-2 header (nibabel).
        affine: [4, 4] float64, voxel (i, j, k) to RAS millimetres, where the source states it itself; None where it is
            for the model's reader to take it from `header`.
        warnings: what is odd about the source, in words; without its name.
        spacing: millimetres between neighbours along i, j, k as the source states them beside `affine`, to the bit;
            None where it does not.
        missing: what the source does not say, of "orientation" and "spacing"; `affine` then holds no more than a guess.
        native: the source's geometry in the words of its own format, which a mask in the same format repeats; None
            where `header` holds it.
        changes: what reading changed of values of voxels, as asked for, in words.
        frame_of_reference: what names the space in which the source lies, where its format has such names; sources of
            two spaces are not one scan, even where their grids are equal. Empty where it has none.
    """

    raw: NDArray[Any]
    slope: float | None
    inter: float | None
    header: Any
    affine: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()
    spacing: Triple | None = None
    missing: tuple[str, ...] = ()
    native: Any = None
    changes: tuple[str, ...] = ()
    frame_of_reference: str = ""


PREPARED_MARK = "voxtile prepared "
"""How the description in the header of a file of `voxtile prepare` begins; the checksum of its plan follows."""


Admit = Callable[[tuple[int, ...], np.dtype[Any], bool], None]
"""Called as admit(shape, dtype, scaled) with what a source's header claims, before a voxel is read or allocated.

`scaled` says whether values have to be multiplied. Raises InputError or MemoryLimitError for a source that is not
wanted.
"""


def anything(_shape: tuple[int, ...], _dtype: np.dtype[Any], _scaled: bool) -> None:
    """Admits every source."""


def refuse_prepared(header: Any, name: str) -> None:
    """Refuses what `voxtile prepare` wrote: it is resampled and normalised, and would be so once more.

    Raises:
        InputError: the header carries the mark of a prepared scan.
    """
    if bytes(header["descrip"].item()).startswith(PREPARED_MARK.encode()):
        raise InputError(f"{name}: expected a scan, found a file of `voxtile prepare`; name the scan it was made from")


HEADER_ERRORS = (ValueError, OverflowError, ArithmeticError, LookupError, TypeError, AssertionError)
"""What nibabel and NumPy raise on impossible header fields; nibabel's own errors come on top."""


def check_real(dtype: np.dtype[Any], name: str) -> None:
    """Checks that voxels of `dtype` are real numbers.

    Raises:
        InputError: they are complex numbers, colours or bits.
    """
    if dtype.kind in "iuf":
        return
    what = f"colours ({'RGBA' if len(dtype.names) == 4 else 'RGB'})" if dtype.names else f"{dtype.name} numbers"
    raise InputError(f"{name}: expected real numbers as voxels, found {what}; convert the scan to a scalar type")


def check_not_empty(shape: tuple[int, ...], name: str) -> None:
    """Checks that an array of `shape` holds a voxel.

    Raises:
        InputError: it holds none.
    """
    if not shape or min(shape) < 1:
        raise InputError(f"{name}: expected at least one voxel along each axis, found an empty volume {shape}")
