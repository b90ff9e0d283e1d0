"""Reads the header of one DICOM object, and single values of it, whatever state it is in.

No message repeats a value that could name a patient: texts, dates and UIDs. Knows nothing of series.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from typing import IO, Any

from voxtile.errors import InputError
from voxtile.io.dicom.files import File

LARGEST_HEADER = 1 << 30
"""Bytes that an object packed by Deflate may become."""

DEFLATED = "1.2.840.10008.1.2.1.99"


def read_header(file: File) -> Any:
    """Returns the header of an object (pydicom's FileDataset, without pixels), called within `quietly`.

    Raises:
        InputError: it is damaged.
    """
    import pydicom

    with readable(file) as stream:
        try:
            return pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        except InputError:
            raise
        except Exception as error:  # whatever pydicom meets in a damaged file
            raise damaged(file.name, error) from None


def damaged(name: str, error: Exception) -> InputError:
    """The error for an object that pydicom cannot read; its own message may repeat values, and is left out."""
    return InputError(
        f"{name}: expected a DICOM object, found a damaged one ({type(error).__name__} in reading it); fetch it again"
    )


class Bounded(io.RawIOBase):
    """A file of which no more is asked for than is left of it.

    Python allocates what a read asks for before it reads, and a damaged object asks for gigabytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        """Implements `io.RawIOBase.read`."""
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Implements `io.IOBase.seek`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Implements `io.IOBase.tell`."""
        return self._file.tell()

    def readable(self) -> bool:
        """Implements `io.IOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """Implements `io.IOBase.seekable`."""
        return True

    def close(self) -> None:
        """Implements `io.IOBase.close`."""
        self._file.close()
        super().close()


def readable(file: File) -> Any:
    """Opens an object for pydicom, whose own unpacking has no limit.

    Raises:
        InputError: it cannot be read, or becomes too large.
    """
    return _inflated(Bounded(file.open()), file)


def _inflated(stream: Any, file: File) -> Any:
    """The stream; of an object that is packed by Deflate, the same object unpacked, within a limit."""
    import pydicom
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    try:
        pydicom.filereader.read_preamble(stream, force=True)
        meta = pydicom.filereader._read_file_meta_info(stream)
    except Exception:  # an object without preamble or meta, or a damaged one: its reading says so
        meta = None
    if meta is None or str(getattr(meta, "TransferSyntaxUID", "")) != DEFLATED:
        stream.seek(0)
        return stream
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(stream.read(), LARGEST_HEADER)
    except zlib.error as error:
        raise damaged(file.name, error) from None
    if unpacker.unconsumed_tail:
        raise InputError(f"{file.name}: its deflated content is larger than {LARGEST_HEADER >> 20} MiB; is it damaged?")
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    written = DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, False
    written.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(written, meta, enforce_standard=False)
    return io.BytesIO(written.getvalue() + body)


# Values --------------------------------------------------------------------------------------------------------


def value_of(dataset: Any, keyword: str) -> Any:
    """The value of a tag; None where it is missing, empty, or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom reads a value only when it is asked for
        return None
    return None if value is None or str(value) == "" else value


def text_of(dataset: Any, keyword: str) -> str:
    """The text of a tag, several values joined by backslashes; empty where there is none."""
    value = value_of(dataset, keyword)
    if value is None:
        return ""
    several = not isinstance(value, (str, bytes)) and isinstance(value, Sequence)
    return "\\".join(map(str, value)) if several else str(value)


def number_of(dataset: Any, keyword: str) -> float | None:
    """The number of a tag; None where it has none, or one that is not finite."""
    try:
        number = float(value_of(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def numbers_of(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """The `count` numbers of a tag; None where it has another number of them, or one that is not finite."""
    value = value_of(dataset, keyword)
    try:
        numbers = tuple(float(one) for one in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def item_of(dataset: Any, keyword: str) -> Any:
    """The first item of a sequence; None where there is none."""
    try:
        sequence = dataset.get(keyword)
        return sequence[0] if sequence else None
    except Exception:  # a damaged sequence
        return None


def tag_of(keyword: str) -> str:
    """What messages call a tag: its keyword and its number."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    number = Tag(tag_for_keyword(keyword) or 0)
    return f"{keyword} ({number.group:04X},{number.element:04X})"
