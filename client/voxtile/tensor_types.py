"""The NumPy type of each data type that a model card can name. Knows nothing of Triton."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUMPY_TYPES: Mapping[str, type[np.generic]] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "int16": np.int16,
    "uint8": np.uint8,
}


def itemsize(dtype: str) -> int:
    """Returns the bytes of one value of `dtype`, a data type of a card."""
    return np.dtype(NUMPY_TYPES[dtype]).itemsize
