"""Reads voxels from a stream into an array, and writes them as a stream; a size is checked before it is allocated.

Knows nothing of headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, Pieces
from voxtile.io.formats.packing import AGAIN, READ_BYTES, Packing
from voxtile.io.scaling import memory_order

TRANSPOSE_ROWS = 16
"""Rows exchanged at a time while axes are put into a file's order: 512 × 64 × 16 bytes stay in the cache."""

WRITE_BYTES = 1 << 24
"""Bytes written at a time."""


def check_size(needed: int, content: Content, packing: Packing | None = None) -> None:
    """Checks, before anything is allocated, that a file can hold as many bytes as its header claims.

    Args:
        needed: the bytes that the header claims, unpacked.
        content: the file.
        packing: how the voxels in it are packed; None for the file's own packing.

    Raises:
        InputError: it cannot.
    """
    packing = packing or content.packing
    if packing is None and needed > content.size:
        raise truncated(content.size, needed, content.name)
    if packing is not None and needed > content.size * packing.limit:
        raise InputError(
            f"{content.name}: its header claims {needed:,} bytes, more than a {packing.name} file of "
            f"{content.size:,} bytes can hold: truncated or damaged; {AGAIN}"
        )


def truncated(got: int, needed: int, name: str) -> InputError:
    """The error for a file of `needed` bytes of which `got` are there."""
    what = f"expected {needed:,} bytes as its header says, found {got:,}: truncated or damaged"
    return InputError(f"{name}: {what}; {AGAIN}")


def read_voxels(
    stream: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any], name: str, before: bytes = b"", offset: int = 0
) -> NDArray[Any]:
    """Reads an array, first axis fastest; its size has been checked.

    Args:
        stream: the bytes.
        shape: the voxels along each axis.
        dtype: their type, in the file's byte order.
        name: what messages call the file.
        before: bytes that were read from the stream already, and belong to the voxels.
        offset: bytes of the file before the voxels; for the message.

    Returns:
        The array in native byte order, in Fortran order.

    Raises:
        InputError: the stream ends before.
    """
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    early = np.frombuffer(before[: buffer.size], np.uint8)
    buffer[: early.size] = early
    got = early.size + _fill(stream, buffer[early.size :])
    if got < buffer.size:
        raise truncated(offset + got, offset + buffer.size, name)
    native = buffer.view(dtype.newbyteorder("="))
    if not dtype.isnative:
        native.byteswap(inplace=True)
    return native.reshape(tuple(shape), order="F")


def text_voxels(text: bytes, sizes: Sequence[int], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Returns the array that a text of numbers holds, first axis fastest. Raises InputError where it is none."""
    words = text.split()
    count = int(np.prod(sizes, dtype=object))
    if len(words) < count:
        what = f"expected {count:,} numbers as its header says, found {len(words):,}: truncated"
        raise InputError(f"{name}: {what}; {AGAIN}")
    try:
        values = np.array(words[:count], np.bytes_).astype(dtype)
    except (ValueError, OverflowError):
        raise InputError(f"{name}: expected {count:,} numbers of the type {dtype.name}, found other text") from None
    return values.reshape(tuple(sizes), order="F")


def skip(stream: IO[bytes], count: int) -> None:
    """Reads `count` bytes that are not wanted; stops where the stream ends."""
    while count > 0 and (chunk := stream.read(min(READ_BYTES, count))):
        count -= len(chunk)


def _fill(stream: IO[bytes], buffer: NDArray[np.uint8]) -> int:
    """Fills `buffer` from `stream`; returns the number of bytes that came."""
    got, target = 0, memoryview(buffer.data)
    while got < len(target) and (chunk := stream.read(min(READ_BYTES, len(target) - got))):
        target[got : got + len(chunk)] = chunk
        got += len(chunk)
    return got


def voxel_pieces(data: NDArray[Any]) -> Pieces:
    """Yields the bytes of an array of two to four axes, first axis fastest, a few planes at a time."""
    data = data[:, :, None] if data.ndim == 2 else data
    for volume in [data] if data.ndim == 3 else np.moveaxis(data, 3, 0):
        step = max(WRITE_BYTES * volume.shape[2] // max(volume.nbytes, 1), 1)
        for first in range(0, volume.shape[2], step):
            yield _in_file_order(volume[:, :, first : first + step]).T.data.cast("B")


def _in_file_order(values: NDArray[Any]) -> NDArray[Any]:
    """Returns `values` [i, j, k] with i fastest in memory.

    Blocks are exchanged one by one within the cache. Copied in one go, every byte would come from a memory page of its
    own, which takes six times as long.
    """
    fastest = memory_order(values)[-1]
    if fastest == 0:
        return np.asfortranarray(values)
    middle = 3 - fastest
    result = np.empty(values.shape[::-1], values.dtype).T
    source, target = values.transpose(middle, 0, fastest), result.transpose(middle, fastest, 0)
    for first in range(0, len(source), TRANSPOSE_ROWS):
        rows = slice(first, first + TRANSPOSE_ROWS)
        block = np.ascontiguousarray(source[rows])
        target[rows] = np.ascontiguousarray(block.transpose(0, 2, 1))
    return result
