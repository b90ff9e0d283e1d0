"""Decodes the pixels of frames into one array, plane by plane, in the type in which they are stored.

Knows nothing of where planes lie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.dicom.frames import Frame
from voxtile.io.dicom.headers import damaged, number_of, readable, tag_of, text_of

DECODERS = "pip install 'voxtile[dicom]' brings decoders for JPEG, JPEG-LS, JPEG 2000 and RLE"


def stored_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The type that holds the stored numbers of all `frames`, by what their headers say.

    Raises:
        InputError: they have none that is known.
    """
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
        wanted.sort(key=lambda one: one[1].number)
        decoded = _decoded([frame for _, frame in wanted])
        for (k, _), plane in zip(wanted, decoded, strict=True):
            if raw is None:  # an object may claim more than it holds
                raw = np.zeros((len(planes), *plane.shape), dtype)
            raw[k] = plane
    assert raw is not None, "a scan has a slice"
    return raw


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
    """Yields [row, column] of frames of one object, in the order in which they lie in it; it is opened once."""
    from pydicom.pixels import iter_pixels, pixel_array

    with readable(frames[0].file) as stream:
        try:
            if not frames[0].group:
                yield _checked(pixel_array(stream, raw=True), frames[0])
                return
            numbers = [frame.number - 1 for frame in frames]
            with contextlib.closing(iter_pixels(stream, raw=True, indices=numbers)) as planes:
                for frame in frames:
                    yield _checked(next(planes), frame)
        except InputError:
            raise
        except Exception as error:  # whatever a decoder meets
            raise _undecoded(frames[0], error) from None


def _checked(plane: NDArray[Any], frame: Frame) -> NDArray[Any]:
    if plane.shape != frame.size:
        raise InputError(f"{frame.name}: expected {frame.size} pixels, found {plane.shape}; the object is damaged")
    return plane


def _syntax(frame: Frame) -> Any:
    from pydicom.uid import UID, ImplicitVRLittleEndian

    said = text_of(getattr(frame.dataset, "file_meta", None) or {}, "TransferSyntaxUID")
    return UID(said) if UID(said).is_transfer_syntax else ImplicitVRLittleEndian


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
