"""Makes a `Stored` of an array that an affine places, with a NIfTI header that says the same.

Knows nothing of where the array comes from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.geometry import check_affine
from voxtile.io.stored import Stored, check_not_empty, check_real


def placed(array: NDArray[Any], affine: NDArray[np.float64], name: str, header: Any = None, **fields: Any) -> Stored:
    """Returns the source that `array` [i, j, k, …] is when `affine` [4, 4] places it (voxel to RAS millimetres).

    Args:
        array: real numbers or truth values; copied only where its memory order needs it.
        affine: where it lies.
        name: what messages call it.
        header: a NIfTI header (nibabel) to go on with; None for a new one.
        **fields: further fields of `Stored`.

    Raises:
        InputError: it holds no real numbers, or none at all, or the affine places no grid.
    """
    from nibabel.nifti1 import Nifti1Header

    check_affine(affine, name)
    stated = with_affine(Nifti1Header() if header is None else header, affine)
    return Stored(
        **{"raw": usable(array, name), "slope": None, "inter": None, "header": stated, "affine": affine, **fields}
    )


def usable(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns an array as `Stored.raw` is: in native byte order, and in C or Fortran order.

    Raises:
        InputError: it holds no real numbers, or none at all.
    """
    array = array.astype(np.uint8) if array.dtype == bool else array
    check_real(array.dtype, name)
    check_not_empty(array.shape, name)
    native = np.asarray(array, array.dtype.newbyteorder("="))
    return native if native.flags.f_contiguous or native.flags.c_contiguous else np.asfortranarray(native)


def with_affine(header: Any, affine: NDArray[np.float64]) -> Any:
    """Makes a NIfTI header state `affine`, unless one of its forms does already; returns it."""
    coded = header["sform_code"] != 0 or header["qform_code"] != 0
    with np.errstate(all="ignore"):
        if not (coded and np.allclose(header.get_best_affine(), affine, equal_nan=True)):
            header.set_sform(affine, code="aligned")
            header.set_qform(affine, code="unknown")
    return header


def nifti_header(header: Any) -> Any:
    """Returns a nibabel header of any format as a NIfTI header of its own."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if isinstance(header, Nifti2Header):
        return header.copy()
    return header.copy() if isinstance(header, Nifti1Header) else Nifti1Header.from_header(header)
