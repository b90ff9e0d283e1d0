"""Requests for the model `identity`: each holds its own number, so that the order of answers shows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from voxtile.triton.types import Request

ROI = (16, 24, 8)


def requests(count: int, batch: int = 2) -> Iterator[Request]:
    """`count` requests of `batch` tiles."""
    for index in range(count):
        yield Request(index, np.full((batch, 1, *ROI), index, np.float32), None)
