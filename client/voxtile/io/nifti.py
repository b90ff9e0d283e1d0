"""NIfTI bytes to a header and stored numbers, without believing what the header claims.

Knows nothing of models. nibabel reads the header; the numbers are read here, because a damaged or hostile file must
end in one InputError: it may claim 10¹² voxels, stop in the middle, or be no NIfTI at all. Nothing is allocated that
the file's own size could not fill.

Files are read, never mapped: a mapped file that shrinks while it is in use kills the process with SIGBUS.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError

LOGGER = logging.getLogger(__name__)

DEFLATE_LIMIT = 1032
"""Deflate never turns one byte into more than this many (zlib's technical notes); gzip adds to that, never less."""

CHUNK_BYTES = 1 << 18
"""Compressed bytes read at a time."""

INFLATE_BYTES = 1 << 22
"""Bytes inflated at a time, so that no chunk grows beyond this, whatever it claims."""

TRAILING_BYTES = 1 << 26
"""How far a gzip stream is followed beyond the voxels, to reach the checksum at its end."""

NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
NIFTI2_MAGIC = b"n+2\0\r\n\x1a\n"

HEADER_ERRORS = (ValueError, OverflowError, ArithmeticError, LookupError, TypeError, AssertionError)
"""What nibabel and NumPy raise on impossible header fields; nibabel's own errors come on top."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a NIfTI file holds: numbers as stored, how to scale them, and the header.

    raw: [i, j, k, …] in Fortran order, native byte order. value = raw · slope + inter; None means 1 and 0.
    """

    raw: NDArray[Any]
    slope: float | None
    inter: float | None
    header: Any
    affine: NDArray[np.float64]


def read_nifti(path: Path) -> Stored:
    """The contents of a NIfTI-1 or NIfTI-2 file, `.nii` or gzip-compressed (told by its bytes, not by its name).

    Raises InputError, in one line, for anything that is not a complete file of real numbers.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return _read(file, size, str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{path}: its voxels do not fit into this machine's memory") from None


def open_regular(path: Path) -> IO[bytes]:
    """The file opened for reading; InputError for what is not there or is no plain file (a folder, a pipe)."""
    if not path.exists():
        raise InputError(f"{path}: expected a NIfTI file, found nothing of that name")
    if not path.is_file():
        raise InputError(f"{path}: expected a NIfTI file, found {'a folder' if path.is_dir() else 'no plain file'}")
    return path.open("rb")


def _read(file: IO[bytes], size: int, name: str) -> Stored:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    chunks = _inflated(file, name) if compressed else iter(lambda: file.read(INFLATE_BYTES), b"")
    stream = _Stream(chunks)
    header = _parse_header(stream.take(NIFTI2_SIZE), name)
    with np.errstate(all="ignore"):
        shape, dtype, offset, slope, inter, affine = _fields(header, name)
    needed = offset + math.prod(shape) * dtype.itemsize
    _check_size(needed, size, compressed, name)
    buffer = np.empty(needed - offset, np.uint8)
    got = stream.fill(offset, buffer)
    if got < buffer.size:
        raise _truncated(offset + got, needed, name)
    if compressed:
        stream.drain(TRAILING_BYTES)
    return Stored(_as_array(buffer, dtype, shape), slope, inter, header, affine)


class _Stream:
    """Bytes that come in chunks, read once from front to back; the first ones may be looked at ahead."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ahead = b""

    def take(self, count: int) -> bytes:
        """The first `count` bytes, or fewer where the stream ends; they stay to be read again."""
        while len(self._ahead) < count and (chunk := next(self._chunks, b"")):
            self._ahead += chunk
        return self._ahead[:count]

    def fill(self, skip: int, buffer: NDArray[np.uint8]) -> int:
        """Fills `buffer` with what follows the first `skip` bytes; returns how many bytes came."""
        position, target = 0, memoryview(buffer.data)
        for chunk in self._rest():
            first = max(skip - position, 0)
            position += len(chunk)
            if first >= len(chunk):
                continue
            start = position - len(chunk) + first - skip
            part = memoryview(chunk)[first : first + len(target) - start]
            target[start : start + len(part)] = part
            if position - skip >= len(target):
                break
        return min(max(position - skip, 0), len(target))

    def drain(self, limit: int) -> None:
        """Reads on to the end of the stream, at most `limit` bytes."""
        for chunk in self._chunks:
            limit -= len(chunk)
            if limit < 0:
                return

    def _rest(self) -> Iterator[bytes]:
        if self._ahead:
            yield self._ahead
        yield from self._chunks


def _inflated(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The uncompressed bytes of a gzip file, of one or several members, each with its checksum verified."""
    member, waiting = zlib.decompressobj(wbits=31), b""
    try:
        while True:
            waiting = waiting or file.read(CHUNK_BYTES)
            if member.eof:
                waiting = waiting.lstrip(b"\0")  # gzip pads with zeros, as tapes need
                if not waiting and not (waiting := file.read(CHUNK_BYTES).lstrip(b"\0")):
                    return
                member = zlib.decompressobj(wbits=31)
            if not waiting:
                raise InputError(f"{name}: truncated gzip: the file ends before the compressed stream does")
            chunk = member.decompress(waiting, INFLATE_BYTES)
            waiting = member.unused_data if member.eof else member.unconsumed_tail
            if chunk:
                yield chunk
    except (zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{name}: damaged gzip stream ({error}); fetch or write the file again") from None


def _parse_header(block: bytes, name: str) -> Any:
    """A nibabel header from a file's first bytes, mended as nibabel mends it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    version, order = _kind(block, name)
    klass, size = (Nifti1Header, NIFTI1_SIZE) if version == 1 else (Nifti2Header, NIFTI2_SIZE)
    if len(block) < size:
        raise _truncated(len(block), size, name)
    try:
        with np.errstate(all="ignore"):
            header = klass(block[:size], endianness="<" if order == "little" else ">", check=False)
            header.check_fix(logger=_Reports(name), error_level=40)
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: its NIfTI header cannot be used: {_one_line(error)}") from None
    return header


def _kind(block: bytes, name: str) -> tuple[int, str]:
    """NIfTI version and byte order, told by the header's own size and its magic."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(block[:4], order)
        if size == NIFTI1_SIZE and block[344:348] == b"n+1\0":
            return 1, order
        if size == NIFTI2_SIZE and block[4:12] == NIFTI2_MAGIC:
            return 2, order
        if size in (NIFTI1_SIZE, NIFTI2_SIZE) and b"ni" in (block[344:346], block[4:6]):
            raise InputError(f"{name}: expected one .nii or .nii.gz file, found half of a .hdr/.img pair; convert it")
    raise InputError(f"{name}: expected a NIfTI file (.nii, .nii.gz), found {_guess(block)}")


def _guess(block: bytes) -> str:
    if not block:
        return "an empty file"
    known = (
        (b"NRRD", "NRRD"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x89HDF", "HDF5"),
    )
    for magic, what in known:
        if block.startswith(magic):
            return what
    return "DICOM" if block[128:132] == b"DICM" else "something else"


def _fields(
    header: Any, name: str
) -> tuple[tuple[int, ...], np.dtype[Any], int, float | None, float | None, NDArray[np.float64]]:
    from nibabel.spatialimages import HeaderDataError

    try:
        shape = tuple(int(size) for size in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
        offset = int(header.get_data_offset())
        affine = np.asarray(header.get_best_affine(), np.float64)
        _check_layout(shape, dtype, offset, name)
        slope, inter = header.get_slope_inter()
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: its NIfTI header cannot be used: {_one_line(error)}") from None
    return shape, dtype, offset, slope, inter, affine


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, name: str) -> None:
    if not shape or min(shape) < 1:
        raise InputError(f"{name}: expected at least one voxel along each axis, found an empty volume {shape}")
    check_real(dtype, name)
    if offset < NIFTI1_SIZE:
        raise InputError(f"{name}: expected voxels behind the header, found them to begin at byte {offset}")


def check_real(dtype: np.dtype[Any], name: str) -> None:
    """Raises InputError for voxels that are no real numbers: complex, colours, bits."""
    if dtype.kind in "iuf":
        return
    what = f"colours ({'RGBA' if len(dtype.names) == 4 else 'RGB'})" if dtype.names else f"{dtype.name} numbers"
    raise InputError(f"{name}: expected real numbers as voxels, found {what}; convert the scan to a scalar type")


def _check_size(needed: int, size: int, compressed: bool, name: str) -> None:
    """Finds a header that claims more than its file can hold, before anything is allocated."""
    if compressed and needed > size * DEFLATE_LIMIT:
        raise InputError(
            f"{name}: its header claims {needed:,} bytes, more than a gzip file of {size:,} bytes can hold; it is "
            "damaged or truncated"
        )
    if not compressed and needed > size:
        raise _truncated(size, needed, name)


def _truncated(got: int, needed: int, name: str) -> InputError:
    return InputError(f"{name}: expected {needed:,} bytes as its header says, found {got:,}: truncated or damaged")


def _as_array(buffer: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    native = buffer.view(dtype.newbyteorder("="))
    if not dtype.isnative:
        native.byteswap(inplace=True)
    return native.reshape(shape, order="F")


class _Reports:
    """Takes nibabel's remarks on a header, which it would else print: the reader mends these fields by itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def log(self, level: int, message: str) -> None:
        LOGGER.debug("%s: header: %s", self._name, message)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
