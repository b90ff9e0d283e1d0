"""Headers that contradict themselves, made from a sound NIfTI file by changing its bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

NAN = float("nan")

AFFINE = np.array([[1.0, 0, 0, -4], [0, 1.5, 0, 5], [0, 0, 2.0, 6], [0, 0, 0, 1]])
"""[4, 4] what a sound header says in both of its forms."""

VOXELS = np.random.default_rng(0).integers(1, 100, (9, 8, 7)).astype(np.int16)

OFFSETS = {
    "dim": (40, "h"), "pixdim": (76, "f"), "vox_offset": (108, "f"), "scl": (112, "f"), "units": (123, "B"),
    "codes": (252, "h"), "quatern": (256, "f"), "qoffset": (268, "f"), "srow": (280, "f"),
}  # fmt: skip
"""Of NIfTI-1's fields: where they begin, and their type; `codes` are those of the qform and the sform."""


def content(values: NDArray[Any] = VOXELS, affine: NDArray[np.float64] = AFFINE, **fields: Any) -> bytes:
    """The bytes of a NIfTI-1 file of `values`, placed by `affine` in both forms, with `fields` of OFFSETS changed."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    result = bytearray(image.to_bytes())
    for name, value in fields.items():
        numbers = np.atleast_1d(np.asarray(value)).ravel().tolist()
        offset, kind = OFFSETS[name]
        struct.pack_into(f"<{len(numbers)}{kind}", result, offset, *numbers)
    return bytes(result)


def written(path: Path, *args: Any, **fields: Any) -> Path:
    """A file of `content`."""
    path.write_bytes(content(*args, **fields))
    return path
