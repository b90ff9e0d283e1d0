"""Reads a NIfTI file to a header and stored numbers, without trusting what the header claims.

nibabel reads the header. The numbers are read here, because a damaged or hostile file must end in one InputError: it
may claim 10¹² voxels, stop in the middle, or be no NIfTI at all. Nothing is allocated that the file's own size could
not fill. Knows nothing of models.

Files are read, never mapped: a mapped file that shrinks while it is in use kills the process with SIGBUS.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.stored import Admit, Stored, anything, check_not_empty, check_real

LOGGER = logging.getLogger(__name__)

DEFLATE_LIMIT = 1032
"""Deflate never turns one byte into more than this many (zlib's technical notes); gzip adds to that, never less."""

READ_BYTES = 1 << 20
"""Bytes read, or inflated, at a time."""

TRAILING_BYTES = 1 << 26
"""How far a gzip stream is read beyond the voxels, to reach the checksum at its end."""

GZIP_MAGIC = b"\x1f\x8b"

NO_MEMBER = "Not a gzipped file"
"""How Python's gzip begins its message where another member should begin and something else does."""

GRAVE_LEVEL = 30
"""nibabel's level of a remark on a header from which a value is changed: WARNING, as in logging."""

UNCHANGED = "leaving at current value"
"""How nibabel's remarks end on a field that it leaves as it is."""

NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
MOST_AXES = 7
NIFTI2_MAGIC = b"n+2\0\r\n\x1a\n"

Stream = IO[bytes] | gzip.GzipFile

HEADER_ERRORS = (ValueError, OverflowError, ArithmeticError, LookupError, TypeError, AssertionError)
"""What nibabel and NumPy raise on impossible header fields; nibabel's own errors come on top."""


def read_nifti(path: Path, admit: Admit = anything) -> Stored:
    """Reads a NIfTI-1 or NIfTI-2 file, `.nii` or gzip-compressed (recognised by its bytes, not by its name).

    Args:
        path: the file.
        admit: asked before a voxel is read; see `voxtile.io.stored.Admit`.

    Raises:
        InputError: in one line, for anything that is not a complete file of real numbers.
    """
    try:
        with open_regular(path) as file:
            return _read(file, os.fstat(file.fileno()).st_size, str(path), admit)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{path}: its voxels do not fit into this machine's memory") from None


def read_nifti_bytes(content: bytes, name: str, admit: Admit = anything) -> Stored:
    """Reads the content of a NIfTI file as `read_nifti` does; `name` is what messages call it."""
    try:
        return _read(io.BytesIO(content), len(content), name, admit)
    except MemoryError:
        raise InputError(f"{name}: its voxels do not fit into this machine's memory") from None


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file for reading.

    Raises:
        InputError: there is none, or it is no regular file (a folder, a pipe).
    """
    if not path.exists():
        raise InputError(f"{path}: expected a NIfTI file, found nothing of that name")
    if not path.is_file():
        raise InputError(f"{path}: expected a NIfTI file, found {'a folder' if path.is_dir() else 'no plain file'}")
    return path.open("rb")


def _read(file: IO[bytes], size: int, name: str, admit: Admit) -> Stored:
    compressed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if not compressed:
        return _read_plain(file, size, name, admit, compressed=False)
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            stored = _read_plain(stream, size, name, admit, compressed=True)
            if _ends_in_other_bytes(stream):
                more = "the gzip stream is followed by other bytes, which are left out, as nibabel and ITK do"
                return replace(stored, warnings=(*stored.warnings, more))
    except EOFError:
        raise InputError(f"{name}: truncated gzip: the file ends before the compressed stream does") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: damaged gzip stream ({error}); fetch or write the file again") from None
    return stored


def _read_plain(stream: Stream, size: int, name: str, admit: Admit, *, compressed: bool) -> Stored:
    """Reads a NIfTI file's plain bytes, which come from a file of `size` bytes."""
    header, warnings = _parse_header(stream.read(NIFTI2_SIZE), name)
    with np.errstate(all="ignore"):
        shape, dtype, offset, slope, inter = _fields(header, name)
    needed = offset + math.prod(shape) * dtype.itemsize
    _check_size(needed, size, compressed, name)
    admit(shape, dtype, (slope, inter) not in ((None, None), (1.0, 0.0)))
    buffer = np.empty(needed - offset, np.uint8)
    stream.seek(offset)
    got = _fill(stream, buffer)
    if got < buffer.size:
        raise _truncated(offset + got, needed, name)
    return Stored(_as_array(buffer, dtype, shape), slope, inter, header, None, warnings)


def _fill(stream: Stream, buffer: NDArray[np.uint8]) -> int:
    """Fills `buffer` from `stream`; returns the number of bytes that came."""
    got, target = 0, memoryview(buffer.data)
    while got < len(target) and (chunk := stream.read(min(READ_BYTES, len(target) - got))):
        target[got : got + len(chunk)] = chunk
        got += len(chunk)
    return got


def _ends_in_other_bytes(stream: gzip.GzipFile) -> bool:
    """Reads on to the end of a gzip stream, where its checksum is verified; not beyond TRAILING_BYTES.

    Returns:
        Whether bytes follow that are neither another gzip member nor padding with zeros.
    """
    try:
        for _ in range(TRAILING_BYTES // READ_BYTES):
            if not stream.read(READ_BYTES):
                break
    except gzip.BadGzipFile as error:
        if str(error).startswith(NO_MEMBER):
            return True
        raise
    return False


def _parse_header(block: bytes, name: str) -> tuple[Any, tuple[str, ...]]:
    """Returns a nibabel header from a file's first bytes, repaired as nibabel repairs it, and what was repaired."""
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
            reports = _Reports(name)
            header.check_fix(logger=reports, error_level=40)
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: its NIfTI header cannot be used: {_one_line(error)}") from None
    return header, tuple(reports.grave)


def _kind(block: bytes, name: str) -> tuple[int, str]:
    """Returns NIfTI version and byte order, recognised by the header's own size and its magic."""
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
    if NIFTI1_SIZE in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
        return "an Analyze header, half of a .hdr/.img pair; convert it"
    return "DICOM" if block[128:132] == b"DICM" else "something else"


def _fields(header: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int, float | None, float | None]:
    from nibabel.spatialimages import HeaderDataError

    axes = int(header["dim"][0])
    if not 1 <= axes <= MOST_AXES:
        raise InputError(f"{name}: its NIfTI header cannot be used: it claims {axes} axes, where 1 to 7 are possible")
    try:
        shape = tuple(int(size) for size in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
        offset = int(header.get_data_offset())
        _check_layout(shape, dtype, offset, name)
        slope, inter = header.get_slope_inter()
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: its NIfTI header cannot be used: {_one_line(error)}") from None
    return shape, dtype, offset, slope, inter


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, name: str) -> None:
    check_not_empty(shape, name)
    check_real(dtype, name)
    if offset < NIFTI1_SIZE:
        raise InputError(f"{name}: expected voxels behind the header, found them to begin at byte {offset}")


def _check_size(needed: int, size: int, compressed: bool, name: str) -> None:
    """Checks, before anything is allocated, that the file can hold as many bytes as its header claims."""
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
    """Takes nibabel's remarks on a header, which it would print otherwise, on fields that the reader itself repairs.

    Attributes:
        grave: those that change what the header says.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.grave: list[str] = []

    def log(self, level: int, message: str) -> None:
        LOGGER.debug("%s: header: %s", self._name, message)
        if level >= GRAVE_LEVEL and not message.endswith(UNCHANGED):
            self.grave.append(f"the header is repaired as nibabel does: {message}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
