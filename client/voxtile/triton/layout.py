"""Lays a request's tensors and its scores out in one piece of shared memory, and checks scores that come back.

Knows nothing of servers: arrays in, arrays out.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.half_floats import all_finite
from voxtile.tensor_types import itemsize
from voxtile.triton.types import Request, scores_shape

ALIGNMENT = 64
"""The scores begin at a multiple of this many bytes, behind the inputs."""

MARK_BYTES = 16
"""Bytes of a mark: too many to be met by chance."""


def scores_offset(request: Request) -> int:
    """The byte at which the scores begin."""
    return -(-request.nbytes // ALIGNMENT) * ALIGNMENT


def scores_bytes(card: Card, request: Request) -> int:
    """The bytes of the scores."""
    return math.prod(scores_shape(card, request)) * itemsize(card.output.dtype)


def needed_bytes(card: Card, request: Request) -> int:
    """The bytes of inputs and scores together."""
    return scores_offset(request) + scores_bytes(card, request)


@dataclass(frozen=True)
class Mark:
    """Bytes in memory that the server will write to.

    Attributes:
        pattern: random bytes.
        middle: the byte of each score volume at which they stand a second time.
    """

    pattern: bytes
    middle: int


def mark_unwritten(scores: NDArray[Any]) -> Mark:
    """Marks the beginning, the end and a place between them of every score volume.

    Scores that were never written, or only in part, keep a mark, whatever their type and whatever the memory held
    before: none is missed. Scores that were written hold the mark by chance once in 2**128 volumes.

    Args:
        scores: [batch, score, *spatial], a view of the memory that the server will write to.
    """
    volumes = _volumes(scores)
    length = min(MARK_BYTES, volumes.shape[1])
    mark = Mark(secrets.token_bytes(length), length + secrets.randbelow(max(volumes.shape[1] - 3 * length, 0) + 1))
    for place in _places(volumes, mark):
        place[:] = np.frombuffer(mark.pattern, np.uint8)
    return mark


def holds_mark(scores: NDArray[Any], mark: Mark) -> bool:
    """Whether any of `scores` [batch, score, *spatial] was not written since it was marked."""
    pattern = np.frombuffer(mark.pattern, np.uint8)
    return any(bool((place == pattern).all(axis=1).any()) for place in _places(_volumes(scores), mark))


def _volumes(scores: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of contiguous `scores` [batch, score, *spatial], one row a volume; a view."""
    batch, count, *spatial = scores.shape
    return scores.reshape(batch * count, math.prod(spatial)).view(np.uint8)


def _places(volumes: NDArray[np.uint8], mark: Mark) -> list[NDArray[np.uint8]]:
    """The bytes of `volumes` [volume, byte] that bear the mark; those of small volumes have room for one mark only."""
    length, size = len(mark.pattern), volumes.shape[1]
    starts = (0, mark.middle, size - length) if size >= 3 * length else (0,)
    return [volumes[:, start : start + length] for start in starts]


def check_answer(response: Any, model: str, version: str, number: int) -> None:
    """Raises ValueError for the answer of another model or version, or to another request.

    Args:
        response: a ModelInferResponse. A server may leave out each of the three.
        model: the model that was asked.
        version: the version that was there at the last look; empty where that is not known.
        number: the request's number.
    """
    expected = {"model_name": model, "model_version": version, "id": str(number)}
    for field, value in expected.items():
        found = getattr(response, field)
        if value and found and found != value:
            raise ValueError(f"expected an answer with the {field} {value!r}, found {found!r}")


def check_tensor(answer: Any, datatype: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a tensor, or None, that is not of Triton's `datatype` and of `shape`."""
    if answer is None:
        raise ValueError(f"expected a tensor 'scores' of {datatype} {list(shape)}, found none")
    if (answer.datatype, tuple(answer.shape)) != (datatype, shape):
        raise ValueError(f"expected scores of {datatype} {list(shape)}, found {answer.datatype} {list(answer.shape)}")


def check_finite(scores: NDArray[Any]) -> None:
    """Raises ValueError for scores with NaN or infinite values."""
    if scores.dtype.kind == "f" and not _finite(scores):
        raise ValueError("the scores hold NaN or infinite values")


def _finite(scores: NDArray[Any]) -> bool:
    """Whether all values are finite. Where their sum is, they are; it costs less to find (fp16 has its own test)."""
    if scores.dtype == np.float16:
        return all_finite(scores)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(scores.sum()) or bool(np.isfinite(scores).all())
