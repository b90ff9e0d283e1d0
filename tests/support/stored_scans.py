"""Values of every stored type, in small NIfTI files that nibabel writes and that tests then change byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import affine_of
from voxtile.errors import InputError
from voxtile.io.scan import open_scan

SHAPE = (7, 5, 6)

AFFINE = affine_of(SHAPE, (1.0, 1.5, 2.0))


def values(dtype: str = "i2", seed: int = 0) -> np.ndarray[Any, Any]:
    """Values that use the type's whole range, where float32 can hold it."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1000, SHAPE).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, SHAPE, dtype=kind, endpoint=True)


def refused(match: str, *paths: Path | str, channels: tuple[str, ...] = ("T1",)) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_scan(paths, channels)
    assert "\n" not in str(caught.value)


def with_scaling(path: Path, data: np.ndarray[Any, Any], slope: float, inter: float) -> Path:
    """The file, with these bits as scl_slope and scl_inter, which nibabel would not write."""
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=data.dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", slope, inter)
    path.write_bytes(bytes(content))
    return path
