"""Decodes the pixels of frames into one array, plane by plane, in the type in which they are stored.

Knows nothing of where planes lie.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.dicom.objects.frames import Frame
from voxtile.io.dicom.objects.headers import Bounded, damaged, number_of, readable, tag_of, text_of

PIXELS_HEAD = 12
"""Bytes of tag, type and length before compressed pixels."""

LOOKED_BEHIND = 1 << 12
"""Bytes behind the pixels that are looked at."""

PIECE, LAST_PIECE = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
"""The tags of a piece of compressed pixels, and of their end."""

BLOCK = 512
"""Bytes to whose multiples tapes and disks fill files up with zeros."""

TAGS_BEHIND = (b"\xfc\xff\xfc\xff", b"\xfa\xff\xfa\xff")
"""DataSetTrailingPadding and DigitalSignaturesSequence."""

PIXELS_GROUP = 0x7FE0

DECODERS = "pip install 'voxtile[dicom]' brings decoders for JPEG, JPEG-LS, JPEG 2000 and RLE"


def stored_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The type that holds the stored numbers of all `frames`, by what their headers say.

    Raises:
        InputError: they have none that is known, or use other bits of it than others.
    """
    stored = {number_of(frame.dataset, "BitsStored"): frame for frame in frames}
    if len(stored) > 1:
        one, other = list(stored.values())[:2]
        raise InputError(
            f"{one.name}: expected as many bits of a number in use ({tag_of('BitsStored')}) as in other slices, found "
            f"other than in {other.name}; is one damaged? Fetch the series again"
        )
    return np.result_type(*{_type_of(frame) for frame in frames})


def read_planes(planes: Sequence[Frame | None], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns [k, row, column] the stored numbers of frames as `dtype`; planes of None hold zeros.

    Raises:
        InputError: the pixels of one are missing, damaged, or packed in a way that cannot be decoded.
    """
    by_object: dict[int, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(planes):
        if frame is not None:
            by_object.setdefault(id(frame.dataset), []).append((k, frame))
    raw: NDArray[Any] | None = None
    for wanted in by_object.values():
        decoded = _decoded([frame for _, frame in wanted])
        for (k, _), plane in zip(wanted, decoded, strict=True):
            if raw is None:  # an object may claim more than it holds
                raw = np.zeros((len(planes), *plane.shape), dtype)
            _check_fits(plane.dtype, dtype, planes[k])
            raw[k] = plane
    assert raw is not None, "a scan has a slice"
    _check_signs_agree(raw, planes)
    return raw


def _check_signs_agree(raw: NDArray[Any], planes: Sequence[Frame | None]) -> None:
    """Checks that no slice holds large numbers where another, scaled alike, has negative ones in their place.

    Some writers choose `PixelRepresentation` by what a slice holds, which does no harm; damage to it does.
    """
    signed = {
        (frame.slope, frame.intercept): frame
        for frame in planes
        if frame is not None and number_of(frame.dataset, "PixelRepresentation") == 1
    }
    for plane, frame in zip(raw, planes, strict=True):
        if frame is None or (frame.slope, frame.intercept) not in signed or raw.dtype.kind == "f":
            continue
        top = int(number_of(frame.dataset, "BitsStored") or number_of(frame.dataset, "BitsAllocated") or 16) - 1
        if number_of(frame.dataset, "PixelRepresentation") == 0 and plane.max() >= 1 << top:
            other = signed[frame.slope, frame.intercept]
            raise InputError(
                f"{frame.name}: expected {tag_of('PixelRepresentation')} 1 as in {other.name}, found 0 and numbers "
                "that may be negative ones; fetch the series again"
            )


def _type_of(frame: Frame) -> np.dtype[Any]:
    dataset = frame.dataset
    bits = number_of(dataset, "BitsAllocated")
    if bits == 32 and "PixelRepresentation" not in dataset:
        return np.dtype(np.float32)
    if bits == 64:
        return np.dtype(np.float64)
    signed = number_of(dataset, "PixelRepresentation")
    if bits not in (8, 16, 32) or signed not in (0, 1):
        raise InputError(
            f"{frame.name}: expected {tag_of('BitsAllocated')} of 8, 16 or 32 and {tag_of('PixelRepresentation')} of 0 "
            f"or 1, found {_shown(bits)} and {_shown(signed)}"
        )
    stored, top = number_of(dataset, "BitsStored"), number_of(dataset, "HighBit")
    if stored is not None and top is not None and top != stored - 1:
        raise InputError(
            f"{frame.name}: expected the lowest bits to be those stored ({tag_of('HighBit')} {stored - 1:g}), found "
            f"{top:g}, as objects before 1993 have it; convert the series, with gdcmconv for example"
        )
    return np.dtype(f"{'i' if signed else 'u'}{int(bits) // 8}")


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:g}"


def _decoded(frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
    """Yields [row, column] of frames of one object, which is opened once."""
    from pydicom.pixels import iter_pixels, pixel_array

    with readable(frames[0].file, _bytes_of(frames[0].dataset)) as stream:
        try:
            if _syntax(frames[0]).is_compressed:
                _check_signs(stream, frames[0], _check_fragments(stream, frames[0]))
            options = _options(frames[0])
            if "NumberOfFrames" not in frames[0].dataset:
                yield _checked(pixel_array(stream, raw=True, **options), frames[0])
                _check_end(stream, frames)
                return
            numbers = [frame.number - 1 for frame in frames]
            with contextlib.closing(iter_pixels(stream, raw=True, indices=numbers, **options)) as planes:
                for frame in frames:
                    yield _checked(next(planes), frame)
                _check_end(stream, frames)
        except InputError:
            raise
        except Exception as error:  # whatever a decoder meets
            raise _undecoded(frames[0], error) from None


def _checked(plane: NDArray[Any], frame: Frame) -> NDArray[Any]:
    if plane.shape != frame.size:
        raise InputError(f"{frame.name}: expected {frame.size} pixels, found {plane.shape}; the object is damaged")
    return plane


def _check_fits(plane: np.dtype[Any], dtype: np.dtype[Any], frame: Frame | None) -> None:
    """Checks that decoded numbers are what the header says: fractions stored as integers would be lost."""
    if (plane.kind == "f") != (dtype.kind == "f") or not np.can_cast(plane, dtype, "safe"):
        name = "the scan" if frame is None else frame.name
        raise InputError(
            f"{name}: expected {dtype.name} pixels, by {tag_of('BitsAllocated')} and {tag_of('PixelRepresentation')},"
            f" found {plane.name}; is it damaged? Fetch or convert it again"
        )


def _check_fragments(stream: Bounded, frame: Frame) -> int:
    """Checks that compressed pixels are pieces, one behind the other: some decoders make what they can of others.

    Returns:
        The place of the first piece in the stream.
    """
    from pydicom import dcmread

    dcmread(stream, stop_before_pixels=True, specific_tags=["Rows"])
    start = place = stream.tell() + PIXELS_HEAD
    while place < stream.size:  # the mark of the end is often left out at the end of a file
        head = stream.at(place, 8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == LAST_PIECE:
            break
        if head[:4] != PIECE or place + 8 + length > stream.size:
            raise InputError(
                f"{frame.name}: expected compressed pixels in pieces, found one that is cut off or has another length; "
                "is it damaged? Fetch it again"
            )
        place += 8 + length
    stream.seek(0)
    return start


def _check_signs(stream: Bounded, frame: Frame, start: int) -> None:
    """Checks that a JPEG 2000 stream of signed numbers is not said to have none: they would become large ones.

    The contrary is common and harmless: the numbers are the same, bit by bit.
    """
    from pydicom.encaps import generate_frames
    from pydicom.pixels.utils import get_j2k_parameters
    from pydicom.uid import JPEG2000TransferSyntaxes

    if _syntax(frame) not in JPEG2000TransferSyntaxes or number_of(frame.dataset, "PixelRepresentation") != 0:
        return
    stream.seek(start)
    count = int(number_of(frame.dataset, "NumberOfFrames") or 1)
    with contextlib.closing(generate_frames(stream, number_of_frames=count)) as packed:
        signed = get_j2k_parameters(next(packed)).get("is_signed")
    stream.seek(0)
    if signed:
        raise InputError(
            f"{frame.name}: expected numbers without a sign, by {tag_of('PixelRepresentation')}, found JPEG 2000 of "
            "numbers with one; nobody knows which is right: convert the series again"
        )


def _check_end(stream: Bounded, frames: Sequence[Frame]) -> None:
    """Checks that pixels are as long as they say, once they were read, and that nothing but further tags follows.

    Bytes that were put between pixels in a copy or a transfer move those behind them, and no header says so.
    """
    if _syntax(frames[0]).is_compressed:
        return
    dataset = frames[0].dataset
    count = int(number_of(dataset, "NumberOfFrames") or 1)
    size = _bytes_of(dataset)
    end = stream.furthest + (count - max(frame.number for frame in frames)) * (size // count)
    big = not _syntax(frames[0]).is_little_endian
    stated = int.from_bytes(stream.at(end - size - 4, 4), "big" if big else "little")
    padding = stream.at(end, min(max(stated - size, 0), LOOKED_BEHIND))
    behind = stream.at(end + len(padding), LOOKED_BEHIND)
    harmless = (
        (stream.size - end - len(padding)) % size == 0  # nothing, or frames that no header counts
        or (stream.size % BLOCK == 0 and not behind.strip(b"\0"))
        or _is_tag(behind)
    )
    if stated < size or padding.strip(b"\0") or not harmless:
        raise InputError(
            f"{frames[0].file.name}: expected {size:,} bytes of pixels and nothing behind them, found other; they may "
            "have moved: is it damaged? Fetch it again"
        )


def _is_tag(first: bytes) -> bool:
    """Whether bytes behind the pixels begin with a tag: padding, a signature, or one of a maker's own."""
    group = int.from_bytes(first[:2], "little")
    return first[:4] in TAGS_BEHIND or (group > PIXELS_GROUP and first[4:6].isalpha() and first[4:6].isupper())


def _bytes_of(dataset: Any) -> int:
    """Bytes of an object's pixels, unpacked, by what its header says."""
    sizes = (number_of(dataset, keyword) for keyword in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated"))
    return int(math.prod(1.0 if size is None else size for size in sizes)) // 8


def _options(frame: Frame) -> dict[str, Any]:
    """What pydicom has to be told of an object whose header does not say how it is stored."""
    said = text_of(getattr(frame.dataset, "file_meta", None) or {}, "TransferSyntaxUID")
    return {} if said else {"transfer_syntax_uid": _syntax(frame)}


def _syntax(frame: Frame) -> Any:
    """How an object is stored; of one that does not say it, as pydicom found its header to be."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    said = UID(text_of(getattr(frame.dataset, "file_meta", None) or {}, "TransferSyntaxUID"))
    if said.is_transfer_syntax:
        return said
    implicit, little = frame.dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _undecoded(frame: Frame, error: Exception) -> InputError:
    """The error for pixels that pydicom cannot decode; its own message may repeat values, and is left out."""
    syntax = _syntax(frame)
    if isinstance(error, (AttributeError, KeyError)) and "PixelData" in str(error):
        return InputError(f"{frame.name}: expected pixels, found none ({tag_of('PixelData')}); fetch the series again")
    if isinstance(error, MemoryError):
        return InputError(f"{frame.name}: its pixels do not fit into this machine's memory")
    if isinstance(error, (RuntimeError, NotImplementedError)) and syntax.is_compressed:
        return InputError(
            f"{frame.name}: its pixels, packed as {syntax.name}, cannot be decoded: damaged, or of a kind for which "
            f"nothing is installed; {DECODERS}"
        )
    return damaged(frame.name, error)
