"""MetaImage, ITK's own format: .mha, or a header .mhd beside a file of voxels. Its directions are in LPS.

The header is read here, for the same reasons as NRRD's; affines go to RAS. `AnatomicalOrientation` is not looked at:
programs write it in two opposite meanings, and ITK passes over it. Knows nothing of models.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, FileFormat, Pieces, affine_to_write
from voxtile.io.formats.packing import AGAIN, GZIP, ZlibStream, packed
from voxtile.io.formats.text_header import (
    counts,
    detached_part,
    file_beside,
    lines_of,
    numbers,
    one_of,
    part_beside,
)
from voxtile.io.formats.voxels import check_size, read_voxels, skip, text_voxels, voxel_pieces
from voxtile.io.geometry import spacing_of
from voxtile.io.orientation import LPS_TO_RAS
from voxtile.io.placed import placed
from voxtile.io.stored import Admit, Stored
from voxtile.io.volume import Volume

SUFFIXES = (".mha", ".mhd")
TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "long": "i4", "ulong": "u4",
    "long_long": "i8", "ulong_long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
"""NumPy's types by MetaImage's names of them, without MET_; its long has four bytes everywhere."""

DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
ORIGINS = ("Offset", "Position", "Origin")
SPACINGS = ("ElementSpacing", "ElementSize")
PLACES = (*DIRECTIONS, *ORIGINS, "CenterOfRotation", "AnatomicalOrientation", *SPACINGS, "DistanceUnits")
"""Fields that a mask repeats."""

UNIT_LENGTH = 1e-3
"""How far the length of a direction may be from 1: programs write six digits."""

WRITTEN_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}

Fields = dict[str, str]


@dataclass(frozen=True)
class MetaPlace:
    """The lines of a header that place a scan of three axes."""

    lines: tuple[str, ...]


def _is_metaimage(content: Content) -> bool:
    """Whether the first line of text names a field that such headers begin with."""
    first = content.first[:200].lstrip().partition(b"=")[0].strip()
    return first in (b"ObjectType", b"NDims", b"ObjectSubType", b"Comment", b"Name") and b"=" in content.first[:200]


def _read(content: Content, admit: Admit) -> Stored:
    name = content.name
    with content.stream() as stream:
        fields = _fields_of(stream, name)
        sizes = _sizes_of(fields, name)
        dtype, channels = _voxels_of(fields, name)
        shape = (*sizes, channels) if channels > 1 else sizes
        ordered = (channels, *sizes) if channels > 1 else sizes
        local = fields["ElementDataFile"].upper() == "LOCAL"
        other = content if local else _data_file(fields, content)
        with _data(stream if local else None, other, fields) as (file, is_packed):
            check_size(int(np.prod(shape, dtype=object)) * dtype.itemsize, other, GZIP if is_packed else None)
            admit(shape, dtype, channels > 1)
            if _is_text(fields):
                raw = text_voxels(file.read(other.size), ordered, dtype, other.name)
            else:
                raw = read_voxels(file, ordered, dtype, other.name)
    return _placed(np.moveaxis(raw, 0, -1) if channels > 1 else raw, fields, name)


@contextmanager
def _data(stream: IO[bytes] | None, content: Content, fields: Fields) -> Iterator[tuple[IO[bytes], bool]]:
    """Yields the stream of voxels from their beginning, and whether they are packed."""
    is_packed = _is_true(fields.get("CompressedData", "False"))
    with content.as_stored() as opened:
        file = stream or opened
        (header,) = numbers(fields.get("HeaderSize", "0"), 1, "HeaderSize", content.name)
        if header == -1 and not is_packed:
            skip(file, content.size - file.tell() - _claimed(fields, content.name))
        else:
            skip(file, int(header))
        if not is_packed:
            yield file, False
            return
        try:
            yield cast("IO[bytes]", ZlibStream(file)), True
        except EOFError:
            cut_off = "truncated: the file ends before its compressed voxels do"
            raise InputError(f"{content.name}: {cut_off}; {AGAIN}") from None
        except zlib.error as error:
            raise InputError(f"{content.name}: damaged compressed voxels ({error}); {AGAIN}") from None


def _claimed(fields: Fields, name: str) -> int:
    dtype, channels = _voxels_of(fields, name)
    return int(np.prod(_sizes_of(fields, name), dtype=object)) * dtype.itemsize * channels


def _data_file(fields: Fields, content: Content) -> Content:
    name = fields["ElementDataFile"].strip()
    if name.split()[0:1] in (["LIST"], ["List"]) or "%" in name:
        raise InputError(
            f"{content.name}: expected its voxels in one file, found a file for each slice ({name[:80]}); join them"
        )
    return file_beside(content, name.removeprefix("./"))


def _fields_of(stream: IO[bytes], name: str) -> Fields:
    """The fields of a header; ElementDataFile is its last, and the voxels may follow."""
    fields: Fields = {}
    for line in lines_of(stream, name):
        key, equals, value = line.partition("=")
        if not equals:
            if line.strip():
                raise InputError(
                    f"{name}: its MetaImage header cannot be used: expected 'key = value', found {line[:80]!r}"
                )
            continue
        if fields.setdefault(key.strip(), value.strip()) != value.strip():
            raise InputError(f"{name}: its MetaImage header cannot be used: it says {key.strip()!r} twice")
        if key.strip() == "ElementDataFile":
            break
    for field in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if not fields.get(field):
            raise InputError(f"{name}: its MetaImage header cannot be used: expected the field {field!r}, found none")
    return fields


def _sizes_of(fields: Fields, name: str) -> tuple[int, ...]:
    (axes,) = counts(fields["NDims"], 1, "NDims", name)
    if axes not in (3, 4):
        raise InputError(f"{name}: expected a scan with three axes in space, found {axes}")
    return counts(fields["DimSize"], axes, "DimSize", name)


def _voxels_of(fields: Fields, name: str) -> tuple[np.dtype[Any], int]:
    """The type of voxels in the file's byte order, and how many numbers each has."""
    known = {f"met_{kind}{end}": code for kind, code in TYPES.items() for end in ("", "_array")}
    dtype = np.dtype(known[one_of(fields["ElementType"], tuple(known), "ElementType", name)])
    (channels,) = counts(fields.get("ElementNumberOfChannels", "1"), 1, "ElementNumberOfChannels", name)
    big = _is_true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    return dtype.newbyteorder(">" if big else "<"), channels


def _is_true(value: str) -> bool:
    """MetaIO looks at the first letter alone."""
    return value[:1].lower() in ("t", "1", "y")


def _is_text(fields: Fields) -> bool:
    return not _is_true(fields.get("BinaryData", "True"))


# Geometry ------------------------------------------------------------------------------------------------------


def _placed(raw: NDArray[Any], fields: Fields, name: str) -> Stored:
    unit = fields.get("DistanceUnits", "mm").lower()
    if unit not in ("mm", "?", "millimeter", "millimeters", ""):
        raise InputError(f"{name}: expected a scan in millimetres, found the DistanceUnits {unit[:20]!r}; convert it")
    axes = len(fields["DimSize"].split())
    steps = _first(fields, SPACINGS)
    spacing = numbers(steps, axes, "ElementSpacing", name)[:3] if steps else [1.0, 1.0, 1.0]
    if min(spacing) <= 0:
        raise InputError(f"{name}: expected an ElementSpacing above 0, found {str(steps)[:80]!r}; repair the header")
    directions, origin = _directions(fields, axes, name), _first(fields, ORIGINS)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * spacing
    affine[:3, 3] = numbers(origin, axes, "Offset", name)[:3] if origin else 0
    missing = [*(["orientation"] if directions is None else []), *([] if steps else ["spacing"])]
    lines = tuple(f"{field} = {fields[field]}" for field in PLACES if field in fields) if axes == 3 else ()
    i, j, k = spacing
    native = MetaPlace(lines) if lines else None
    where = LPS_TO_RAS @ affine
    return placed(raw, where, name, spacing=(i, j, k), missing=tuple(missing), native=native)


def _directions(fields: Fields, axes: int, name: str) -> NDArray[np.float64] | None:
    """[3, 3] the unit vectors of the axes as columns, in LPS; None where the header has none."""
    text = _first(fields, DIRECTIONS)
    if text is None:
        return None
    matrix = np.reshape(numbers(text, axes * axes, "TransformMatrix", name), (axes, axes))[:3, :3].T
    if abs(spacing_of(matrix) - 1).max() > UNIT_LENGTH:
        raise InputError(f"{name}: expected directions of length 1 in its TransformMatrix, found {text[:80]!r}")
    return matrix


def _first(fields: Fields, names: tuple[str, ...]) -> str | None:
    return next((fields[name] for name in names if fields.get(name)), None)


# Writing -------------------------------------------------------------------------------------------------------


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    data = np.asanyarray(image.dataobj)
    data = data[:, :, None] if data.ndim == 2 else data
    place = volume.native if volume is not None else None
    lines = place.lines if isinstance(place, MetaPlace) else _lines(affine_to_write(image, volume))
    others = _written_parts(path)
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    voxels = b"".join(packed(voxel_pieces(little), GZIP, labels=data.dtype.kind in "iu"))
    header = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(voxels)}",
        *lines,
        f"DimSize = {' '.join(map(str, data.shape))}",
        f"ElementType = {WRITTEN_TYPES[data.dtype.name]}",
        f"ElementDataFile = {others[0].name if others else 'LOCAL'}",
        "",
    ]
    text = "\n".join(header).encode("utf-8", "surrogateescape")
    if others:
        yield others[0], iter([voxels])
        yield path, iter([text])
    else:
        yield path, iter([text, voxels])


def _lines(affine: NDArray[np.float64]) -> list[str]:
    """The lines that place a grid by its affine to RAS, as ITK writes them."""
    lps = LPS_TO_RAS @ affine
    spacing = spacing_of(lps)
    return [
        f"TransformMatrix = {_words((lps[:3, :3] / spacing).T)}",
        f"Offset = {_words(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_words(spacing)}",
    ]


def _words(values: NDArray[np.float64]) -> str:
    return " ".join(map(repr, values.ravel().tolist()))


def _written_parts(path: Path) -> list[Path]:
    return part_beside(path, ".mhd", SUFFIXES, ".zraw")


def _parts(path: Path) -> list[Path]:
    return detached_part(path, ".mhd", lambda stream, content: _data_file(_fields_of(stream, content.name), content))


METAIMAGE = FileFormat(
    "MetaImage", SUFFIXES, _is_metaimage, _read, _write, SUFFIXES, parts=_parts, written_parts=_written_parts
)
