"""Reads the header of one DICOM object, and single values of it, whatever state it is in.

No message repeats a value that could name a patient: texts, dates and UIDs. Knows nothing of series.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Sequence
from typing import IO, Any, Literal

from voxtile.errors import InputError
from voxtile.io.dicom.objects.files import File

LARGEST_HEADER = 1 << 27
"""Bytes of an object before its pixels; one of 20,000 frames has half of it."""

LARGEST_INFLATED = 1 << 30
"""Bytes that an object packed by Deflate may become where nothing is known of its pixels."""

LARGEST_VALUE = 1 << 20
"""Bytes of a value that is kept of a header; larger ones are makers' own, and nothing here asks for them."""

FRAMES = (0x52009229, 0x52009230)
"""SharedFunctionalGroupsSequence and PerFrameFunctionalGroupsSequence, which are kept however large they are."""

ITEM = (0xFFFE, 0xE000)
"""The tag of an item of a sequence."""

UNDEFINED = 0xFFFFFFFF
"""The length of a value that ends in a mark."""

PACKED_PIXELS = 2
"""By how much pixels may be longer than their numbers: compression that fails makes noise a little longer."""

CLASS_FORM = re.compile(r"[0-9]+(\.[0-9]+){3,}")
"""The UID of a class, of the standard's or of a maker's own."""

DEFLATED = "1.2.840.10008.1.2.1.99"


def read_header(file: File) -> Any:
    """Returns the header of an object (pydicom's FileDataset, without pixels), called within `quietly`.

    Raises:
        InputError: it is damaged, cut off, or larger than a header can be.
    """
    import pydicom

    with _inflated(Bounded(file.open(), file.size, LARGEST_HEADER), file, LARGEST_HEADER) as stream:
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        except Exception as error:  # whatever pydicom meets in a damaged file
            raise damaged(file.name, error) from None
    _check_whole(header, file.name)
    for tag, element in list(header.items()):
        if tag not in FRAMES and isinstance(element.value, bytes) and len(element.value) > LARGEST_VALUE:
            del header[tag]
    return header


def damaged(name: str, error: Exception) -> InputError:
    """The error for an object that pydicom cannot read; its own message may repeat values, and is left out."""
    return InputError(
        f"{name}: expected a DICOM object, found a damaged one ({type(error).__name__} in reading it); fetch it again"
    )


def _check_whole(dataset: Any, name: str) -> None:
    """Checks that no value is shorter than it says: pydicom takes what there is. Raises InputError."""
    from pydicom.dataelem import RawDataElement

    for element in dataset.values():  # as they were read: nothing is converted
        if isinstance(element, RawDataElement):
            if element.length != UNDEFINED and len(element.value or b"") < element.length:
                raise InputError(
                    f"{name}: expected a whole DICOM object, found one that is cut off or damaged in its header; fetch "
                    "it again"
                )
        elif element.VR == "SQ":
            for item in element.value:
                _check_whole(item, name)


class TooLargeError(Exception):
    """More was asked for than an object of its kind can hold."""


class Bounded(io.RawIOBase):
    """A file of which no more is asked for than is left of it, and no more in all than a limit.

    Python allocates what a read asks for before it reads, and a damaged object asks for gigabytes.
    """

    def __init__(self, file: IO[bytes], size: int, most: int | None = None) -> None:
        super().__init__()
        self._file = file
        self.size = size
        self._most = most
        self._furthest = 0

    def read(self, size: int | None = -1) -> bytes:
        """Implements `io.RawIOBase.read`. Raises TooLargeError beyond the limit."""
        left = max(self.size - self._file.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if self._most is not None:
            self._most -= wanted
            if self._most < 0:
                raise TooLargeError
        found = self._file.read(wanted)
        self._furthest = max(self._furthest, self._file.tell())
        return found

    @property
    def furthest(self) -> int:
        """The place behind the furthest byte that was read."""
        return self._furthest

    def at(self, place: int, count: int) -> bytes:
        """Up to `count` bytes from a place on."""
        self._file.seek(max(place, 0))
        return self._file.read(count)

    def rest(self, most: int) -> bytes:
        """What is left of the file, `most` bytes of it, beside the limit."""
        return self._file.read(min(max(self.size - self._file.tell(), 0), most))

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


def readable(file: File, pixels: int | None = None) -> Bounded:
    """Opens an object for pydicom, whose own unpacking has no limit.

    Args:
        file: where the object lies.
        pixels: the bytes of its pixels, by what its header says; None where that is not known. An object that is not
            packed is then read however large it is.

    Raises:
        InputError: it cannot be read, or is larger than such an object can be.
    """
    most = LARGEST_INFLATED if pixels is None else LARGEST_HEADER + PACKED_PIXELS * pixels
    if pixels is not None and file.size > most:
        raise _too_large(file, most)
    packed = file.archive is not None  # frames are sought in it, and each step back would unpack it anew
    plain = Bounded(io.BytesIO(file.content()) if packed else file.open(), file.size)
    stream = _inflated(plain, file, most)
    if stream is not plain and stream.size > most:
        raise _too_large(file, most)
    return stream


def _too_large(file: File, most: int) -> InputError:
    return InputError(
        f"{file.name}: expected {most >> 20} MiB at most, unpacked, by what its header says, found more; is it "
        "damaged? Fetch it again"
    )


def _inflated(stream: Bounded, file: File, most: int) -> Bounded:
    """The stream; of an object that is packed by Deflate, the same unpacked: a few bytes above `most` tell of more."""
    import pydicom
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    try:
        pydicom.filereader.read_preamble(stream, force=True)
        meta = pydicom.filereader._read_file_meta_info(stream)
    except Exception:  # an object without preamble or meta, or a damaged one: its reading says so
        meta = None
    if meta is None or text_of(meta, "TransferSyntaxUID") != DEFLATED:
        stream.seek(0)
        return stream
    try:
        body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.rest(most), most)
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        written = DicomBytesIO()
        written.is_little_endian, written.is_implicit_VR = True, False
        written.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(written, meta, enforce_standard=False)
    except Exception as error:  # whatever zlib and pydicom meet in a damaged file
        raise damaged(file.name, error) from None
    content = written.getvalue() + body
    return Bounded(io.BytesIO(content), len(content))


# Values --------------------------------------------------------------------------------------------------------


def value_of(dataset: Any, keyword: str) -> Any:
    """The value of a tag; None where it is missing, empty, or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom reads a value only when it is asked for
        return None
    return None if value is None or str(value) == "" else value


def says_image(dataset: Any) -> bool:
    """Whether an object's class, by its header or by what stands before it, is one of images."""
    from pydicom.uid import UID

    return any(UID(one).keyword.endswith("ImageStorage") for one in _classes(dataset))


def says_class(dataset: Any) -> bool:
    """Whether an object says of what class it is; one whose header is damaged often does not."""
    return any(CLASS_FORM.fullmatch(one) for one in _classes(dataset))


def _classes(dataset: Any) -> tuple[str, str]:
    meta = getattr(dataset, "file_meta", None) or {}
    return text_of(dataset, "SOPClassUID"), text_of(meta, "MediaStorageSOPClassUID")


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


def states(dataset: Any, keyword: str) -> bool:
    """Whether a tag is there and not empty, whatever it holds."""
    if keyword not in dataset:
        return False
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom reads a value only when it is asked for
        return True
    return not (value is None or str(value) == "")


def stated_number(dataset: Any, keyword: str, name: str) -> float | None:
    """The number of a tag that counts where it stands; None where it is missing or empty.

    Raises:
        InputError: it holds what is no finite number.
    """
    if not states(dataset, keyword):
        return None
    number = number_of(dataset, keyword)
    if number is None:
        raise InputError(f"{name}: expected a finite number as {tag_of(keyword)}, found none; is it damaged?")
    return number


def items_of(dataset: Any, keyword: str, name: str) -> list[Any]:
    """The items of a sequence; none where it is missing or empty.

    Raises:
        InputError: it is damaged; pydicom reads a sequence only when it is asked for.
    """
    from pydicom.dataset import Dataset

    if keyword not in dataset:
        return []
    try:
        _check_items(dataset.get_item(keyword))
        items = list(dataset.get(keyword) or ())
    except Exception as error:
        raise damaged(name, error) from None
    if not all(isinstance(item, Dataset) for item in items):
        raise damaged(name, TypeError())
    for item in items:
        _check_whole(item, name)
    return items


def _check_items(sequence: Any) -> None:
    """Checks that the bytes of a sequence are items, one behind the other: pydicom takes for one what lies there.

    Raises:
        ValueError: a length is wrong, so that the sequence holds a part of an item, or what follows it.
    """
    from pydicom.dataelem import RawDataElement

    if not isinstance(sequence, RawDataElement) or sequence.length == UNDEFINED:
        return
    content, place = sequence.value or b"", 0
    order: Literal["little", "big"] = "little" if sequence.is_little_endian else "big"
    while place < len(content):
        group, element, length = (
            int.from_bytes(content[place + start : place + end], order) for start, end in ((0, 2), (2, 4), (4, 8))
        )
        if (group, element) != ITEM:
            raise ValueError
        if length == UNDEFINED:  # it ends in a mark, which pydicom looks for
            return
        place += 8 + length
    if place != len(content) or len(content) != sequence.length:
        raise ValueError


def item_of(dataset: Any, keyword: str, name: str) -> Any:
    """The first item of a sequence; None where there is none. Raises InputError as `items_of` does."""
    return next(iter(items_of(dataset, keyword, name)), None)


def tag_of(keyword: str) -> str:
    """What messages call a tag: its keyword and its number."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    number = Tag(tag_for_keyword(keyword) or 0)
    return f"{keyword} ({number.group:04X},{number.element:04X})"
