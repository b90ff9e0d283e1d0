"""Lays a request's tensors and its scores out in one piece of shared memory, and checks scores that come back.

Knows nothing of servers: arrays in, arrays out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.half_floats import all_finite
from voxtile.tensor_types import itemsize
from voxtile.triton.types import Request, scores_shape

ALIGNMENT = 64
"""The scores begin at a multiple of this many bytes, behind the inputs."""


def scores_offset(request: Request) -> int:
    """The byte at which the scores begin."""
    return -(-request.nbytes // ALIGNMENT) * ALIGNMENT


def scores_bytes(card: Card, request: Request) -> int:
    """The bytes of the scores."""
    return math.prod(scores_shape(card, request)) * itemsize(card.output.dtype)


def needed_bytes(card: Card, request: Request) -> int:
    """The bytes of inputs and scores together."""
    return scores_offset(request) + scores_bytes(card, request)


def mark_unwritten(scores: NDArray[Any]) -> None:
    """Writes NaN at both ends of every score volume, so that scores that were never written are noticed.

    Args:
        scores: [batch, score, *spatial], a view of the memory that the server will write to. Integers are left as
            they are.
    """
    if scores.dtype.kind == "f":
        batch, count, *spatial = scores.shape
        scores.reshape(batch * count, math.prod(spatial))[:, [0, -1]] = np.nan


def check_finite(scores: NDArray[Any]) -> None:
    """Raises ValueError for scores with NaN or infinite values."""
    if scores.dtype.kind == "f" and not _finite(scores):
        raise ValueError("the scores hold NaN or infinite values")


def _finite(scores: NDArray[Any]) -> bool:
    """Whether all values are finite: the sum of values is finite only then (fp16 has a test of its own)."""
    if scores.dtype == np.float16:
        return all_finite(scores)
    return math.isfinite(float(scores.sum(dtype=np.float32)))
