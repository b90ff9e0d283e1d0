"""What every source of a scan gives: numbers as stored, how to scale them, a header and an affine.

Knows nothing of where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError


@dataclass(frozen=True, eq=False)
class Stored:
    """One source of a scan; value = raw · slope + inter.

    Attributes:
        raw: [i, j, k, …] real numbers in native byte order, contiguous in C or Fortran order.
        slope: None for 1.
        inter: None for 0.
        header: a NIfTI-1 or NIfTI-2 header (nibabel) whose geometry is that of `affine`.
        affine: [4, 4] float64, voxel (i, j, k) to RAS millimetres.
    """

    raw: NDArray[Any]
    slope: float | None
    inter: float | None
    header: Any
    affine: NDArray[np.float64]


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
