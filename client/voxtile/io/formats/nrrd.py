"""NRRD, attached (.nrrd) and detached (.nhdr): a header of text says where the voxels lie, in one of several spaces.

The header is read here because it says what no library passes on: whether it states a space at all, what an axis that
is no direction means, and which bytes are claimed. Affines go to RAS, as NIfTI's do. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, FileFormat, Pieces, affine_to_write
from voxtile.io.formats.packing import BZIP2, GZIP, Packing, packed, unpacked
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

MAGIC = b"NRRD000"
SUFFIXES = (".nrrd", ".nhdr")

SIGNED = {
    "i1": ("signed char", "int8", "int8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
}
UNSIGNED = {
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
}
TYPES: dict[str, str] = {
    **{name: code for code, names in (SIGNED | UNSIGNED).items() for name in names},
    "float": "f4",
    "double": "f8",
}
"""NumPy's types by NRRD's names of them."""

TO_RAS: dict[str, NDArray[np.float64]] = {
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(4)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0, 1.0])),
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS_TO_RAS),
}
"""From millimetres in each space that names the patient's sides; other spaces do not say where left is."""

ENCODINGS: dict[str, Packing | None] = {
    "raw": None,
    **dict.fromkeys(("gzip", "gz"), GZIP),
    **dict.fromkeys(("bzip2", "bz2"), BZIP2),
}
TEXTS = ("txt", "text", "ascii")
MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???")
DIRECTIONS = ("domain", "space")
COLOURS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color")
CHANNELS = (
    "list", "vector", "covariant-vector", "2-vector", "3-vector", "4-vector", "point", "time", "scalar", "stub", "none",
    "???",
)  # fmt: skip
NAMES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
"""Other spellings of fields."""

Fields = dict[str, str]


@dataclass(frozen=True)
class NrrdPlace:
    """The lines of a header that place a scan, for a mask on the same three axes."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Axes:
    """What the axes of a file are, by their numbers, the fastest in memory first.

    Attributes:
        sizes: of all axes.
        spatial: the three that are directions.
        others: those that hold channels or points of time.
    """

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    others: tuple[int, ...]


def _is_nrrd(content: Content) -> bool:
    return content.first.startswith(MAGIC)


def _read(content: Content, admit: Admit) -> Stored:
    with content.stream() as stream:
        fields = _fields_of(stream, content.name)
        axes = _axes_of(fields, content.name)
        dtype = _dtype_of(fields, content.name)
        shape = tuple(axes.sizes[axis] for axis in (*axes.spatial, *axes.others))
        moved = (*axes.spatial, *axes.others) != tuple(range(len(shape)))
        if "data file" not in fields:
            raw = _voxels(stream, content, fields, axes.sizes, dtype, lambda: admit(shape, dtype, moved))
        else:
            other = _data_file(fields, content)
            with other.as_stored() as file:
                raw = _voxels(file, other, fields, axes.sizes, dtype, lambda: admit(shape, dtype, moved))
    raw = raw.transpose(*axes.spatial, *axes.others)
    return _placed(raw, fields, axes, content.name)


def _data_file(fields: Fields, content: Content) -> Content:
    name = fields["data file"].strip()
    if name.split()[0:1] == ["LIST"] or "%" in name:
        raise InputError(
            f"{content.name}: expected its voxels in one file, found a file for each slice ({name[:80]}); join them"
        )
    return file_beside(content, name.removeprefix("./"))


def _fields_of(stream: IO[bytes], name: str) -> Fields:
    """The fields of a header by their names in small letters; keys with values of programs' own are left out."""
    fields: Fields = {}
    for line in lines_of(stream, name):
        if not line:
            break
        key, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):
            continue
        key = " ".join(key.lower().split())
        if fields.setdefault(NAMES.get(key, key), value.strip()) != value.strip():
            raise InputError(f"{name}: its NRRD header cannot be used: it says {key!r} twice")
    for field in ("dimension", "sizes", "type", "encoding"):
        if field not in fields:
            raise InputError(f"{name}: its NRRD header cannot be used: expected the field {field!r}, found none")
    return fields


def _dtype_of(fields: Fields, name: str) -> np.dtype[Any]:
    dtype = np.dtype(TYPES[one_of(fields["type"], tuple(TYPES), "type", name)])
    if dtype.itemsize == 1 or fields["encoding"].lower() in TEXTS:
        return dtype
    order = one_of(fields.get("endian", ""), ("little", "big"), "endian", name)
    return dtype.newbyteorder("<" if order == "little" else ">")


# Axes ----------------------------------------------------------------------------------------------------------


def _axes_of(fields: Fields, name: str) -> _Axes:
    (dimension,) = counts(fields["dimension"], 1, "dimension", name)
    sizes = counts(fields["sizes"], dimension, "sizes", name) if dimension <= 16 else ()
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != dimension:
        raise InputError(f"{name}: expected {dimension} kinds of axes in its header, found {len(kinds)}")
    spatial = _spatial_axes(fields, kinds, dimension, name)
    if len(spatial) != 3:
        raise InputError(f"{name}: expected a scan with three axes in space, found {len(spatial)} of {dimension}")
    others = tuple(axis for axis in range(dimension) if axis not in spatial)
    for kind in (kinds[axis] for axis in others if kinds):
        if kind not in (*CHANNELS, *DIRECTIONS):
            what = "colours" if kind in COLOURS else f"voxels of the kind {kind}"
            raise InputError(
                f"{name}: expected real numbers as voxels, found {what}; convert the scan to a scalar type"
            )
    return _Axes(sizes, spatial, others)


def _spatial_axes(fields: Fields, kinds: Sequence[str], dimension: int, name: str) -> tuple[int, ...]:
    if "space directions" in fields:
        return tuple(axis for axis, one in enumerate(_directions(fields, dimension, name)) if one is not None)
    spatial = [axis for axis in range(dimension) if not kinds or kinds[axis] in DIRECTIONS]
    return tuple(spatial[:3])


def _directions(fields: Fields, dimension: int, name: str) -> list[str | None]:
    """The vector of each axis, as it is written; None for one that is no direction."""
    words = fields["space directions"].replace("(", " (").replace(")", ") ").replace(", ", ",").replace(" ,", ",")
    found = _vectors(words)
    if len(found) != dimension:
        raise InputError(f"{name}: expected {dimension} space directions in its header, found {len(found)}")
    return [None if word.lower() == "none" else word for word in found]


def _vectors(text: str) -> list[str]:
    """The words of a field, each vector as one word without blanks."""
    words: list[str] = []
    inside = False
    for word in text.split():
        if inside:
            words[-1] += word
        else:
            words.append(word)
        inside = words[-1].startswith("(") and not words[-1].endswith(")")
    return words


def _vector(word: str, field: str, name: str) -> list[float]:
    inner = word.strip().removeprefix("(").removesuffix(")")
    return numbers(inner.replace(",", " "), 3, field, name)


# Voxels --------------------------------------------------------------------------------------------------------


def _voxels(
    file: IO[bytes], content: Content, fields: Fields, sizes: Sequence[int], dtype: np.dtype[Any], admit: Any
) -> NDArray[Any]:
    """Reads the voxels, which begin where `file` stands or as many lines and bytes later as `fields` say."""
    name = content.name
    needed = int(np.prod(sizes, dtype=object)) * dtype.itemsize
    lines, skipped = (_skipped(fields, field, name) for field in ("line skip", "byte skip"))
    encoding = " ".join(fields["encoding"].lower().split())
    for _ in range(lines):
        if not file.readline(1 << 20):
            break
    if encoding in TEXTS:
        check_size(int(np.prod(sizes, dtype=object)), content)
        admit()
        return text_voxels(file.read(content.size), sizes, dtype, name)
    packing = ENCODINGS[one_of(encoding, (*ENCODINGS, *TEXTS), "encoding", name)]
    check_size(needed, content, packing)
    admit()
    if skipped == -1 and packing is None:
        skipped = _until_the_end(file, content, needed)
    with unpacked(file, packing, name) as stream:
        skip(stream, max(skipped, 0))
        return read_voxels(stream, sizes, dtype, name)


def _until_the_end(file: IO[bytes], content: Content, needed: int) -> int:
    """Bytes to leave out before voxels that end with the file."""
    if content.packing is not None:
        raise InputError(f"{content.name}: expected voxels at a known place, found a packed file with byte skip -1")
    return content.size - file.tell() - needed


def _skipped(fields: Fields, field: str, name: str) -> int:
    (value,) = numbers(fields.get(field, "0"), 1, field, name)
    if value != int(value) or value < (-1 if field == "byte skip" else 0):
        raise InputError(f"{name}: expected a whole number for {field!r} in its header, found {fields[field][:80]!r}")
    return int(value)


# Geometry ------------------------------------------------------------------------------------------------------


def _placed(raw: NDArray[Any], fields: Fields, axes: _Axes, name: str) -> Stored:
    _check_units(fields, name)
    space = " ".join(fields.get("space", "").lower().split())
    missing: tuple[str, ...] = () if space in TO_RAS and "space directions" in fields else ("orientation",)
    affine, lines = np.eye(4), []
    if "space directions" in fields:
        words = [str(word) for word in _directions(fields, len(axes.sizes), name) if word is not None]
        origin = fields.get("space origin", "(0,0,0)")
        affine[:3, :3] = np.transpose([_vector(word, "space directions", name) for word in words])
        affine[:3, 3] = _vector(origin, "space origin", name)
        stated = f"space: {fields['space']}" if "space" in fields else "space dimension: 3"
        lines = [stated, f"space directions: {' '.join(words)}", f"space origin: {origin}"]
        affine = TO_RAS.get(space, np.eye(4)) @ affine
    elif "spacings" in fields:
        steps = fields["spacings"].split()
        chosen = [steps[axis] for axis in axes.spatial] if len(steps) == len(axes.sizes) else steps
        affine[:3, :3] = np.diag(numbers(" ".join(chosen), 3, "spacings", name))
        lines = [f"spacings: {' '.join(chosen)}"]
    else:
        missing = ("orientation", "spacing")
    i, j, k = spacing_of(affine).tolist()
    return placed(raw, affine, name, spacing=(i, j, k), missing=missing, native=NrrdPlace(tuple(lines)))


def _check_units(fields: Fields, name: str) -> None:
    units = fields.get("space units", "").replace('"', " ").lower().split()
    other = [unit for unit in units if unit not in MILLIMETRES]
    if other:
        raise InputError(f"{name}: expected a scan in millimetres, found the space unit {other[0][:20]!r}; convert it")


# Writing -------------------------------------------------------------------------------------------------------

WRITTEN_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    data = np.asanyarray(image.dataobj)
    data = data[:, :, None] if data.ndim == 2 else data
    place = volume.native if volume is not None else None
    lines = place.lines if isinstance(place, NrrdPlace) else _lines(affine_to_write(image, volume))
    header = [
        "NRRD0004",
        f"type: {WRITTEN_TYPES[data.dtype.name]}",
        "dimension: 3",
        *(line for line in lines if line.startswith(("space:", "space dimension:"))),
        f"sizes: {' '.join(map(str, data.shape))}",
        *(line for line in lines if not line.startswith(("space:", "space dimension:"))),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
    ]
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    voxels = packed(voxel_pieces(little), GZIP, labels=data.dtype.kind in "iu")
    if path.name.lower().endswith(".nrrd"):
        yield path, chain(["\n".join([*header, "", ""]).encode("utf-8", "surrogateescape")], voxels)
    else:
        (other,) = _written_parts(path)
        yield other, voxels
        yield path, iter(["\n".join([*header, f"data file: {other.name}", ""]).encode("utf-8", "surrogateescape")])


def _lines(affine: NDArray[np.float64]) -> list[str]:
    """The lines that place a grid by its affine to RAS, as ITK writes them."""
    lps = LPS_TO_RAS @ affine
    vectors = [f"({','.join(map(repr, column))})" for column in lps[:3].T.tolist()]
    return [
        "space: left-posterior-superior",
        f"space directions: {' '.join(vectors[:3])}",
        f"space origin: {vectors[3]}",
    ]


def _written_parts(path: Path) -> list[Path]:
    return part_beside(path, ".nhdr", SUFFIXES, ".raw.gz")


def _parts(path: Path) -> list[Path]:
    return detached_part(path, ".nhdr", lambda stream, content: _data_file(_fields_of(stream, content.name), content))


NRRD = FileFormat("NRRD", SUFFIXES, _is_nrrd, _read, _write, SUFFIXES, parts=_parts, written_parts=_written_parts)
