"""MGH and MGZ, FreeSurfer's format: voxels placed by the middle of their grid. nibabel reads and writes the header.

Its affine goes to RAS, as NIfTI's does. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, FileFormat, Pieces, affine_to_write, ends_in
from voxtile.io.formats.packing import GZIP, ends_in_other_bytes, packed
from voxtile.io.formats.voxels import check_size, read_voxels, skip, truncated, voxel_pieces
from voxtile.io.placed import placed
from voxtile.io.stored import HEADER_ERRORS, Admit, Stored, check_not_empty
from voxtile.io.volume import Volume

VERSION = b"\0\0\0\1"
HEADER_SIZE = 90
"""Bytes of the fields at the beginning; zeros follow up to VOXELS_AT."""

VOXELS_AT = 284
GOOD_RAS = slice(28, 30)
"""The flag that the header says where the voxels lie; nibabel makes it up where it does not."""

SUFFIXES = (".mgz", ".mgh", ".mgh.gz")
MOST_LABELS = {"uint8": np.uint8, "uint16": np.int32, "float32": np.float32}
"""The types of voxels that FreeSurfer itself reads, by those of a mask: its 16 bits have a sign."""


@dataclass(frozen=True, eq=False)
class MghPlace:
    """The header of a scan, whose geometry a mask repeats."""

    header: Any


def _is_mgh(content: Content) -> bool:
    return content.first[:4] == VERSION and bool(content.path is None or ends_in(content.path.name, SUFFIXES))


def _read(content: Content, admit: Admit) -> Stored:
    name = content.name
    if len(content.first) < VOXELS_AT:
        raise truncated(len(content.first), VOXELS_AT, name)
    header, shape, dtype, affine = _header_of(content)
    check_not_empty(shape, name)
    check_size(VOXELS_AT + int(np.prod(shape, dtype=object)) * dtype.itemsize, content)
    admit(shape, dtype, False)
    with content.stream() as stream:
        skip(stream, VOXELS_AT)
        raw = read_voxels(stream, shape, dtype, name, offset=VOXELS_AT)
        if content.packing is not None:
            ends_in_other_bytes(stream)
    i, j, k = header["delta"].astype(np.float64).tolist()
    says = content.first[GOOD_RAS] != b"\0\0"
    missing = () if says else ("orientation", "spacing")
    return placed(raw, affine, name, spacing=(i, j, k), missing=missing, native=MghPlace(header))


def _header_of(content: Content) -> tuple[Any, tuple[int, ...], np.dtype[Any], Any]:
    """The header, and what it claims: shape, type of voxels, affine."""
    from nibabel.freesurfer.mghformat import MGHError, MGHHeader
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):
            header = MGHHeader(content.first[:HEADER_SIZE])
            shape = tuple(int(size) for size in header.get_data_shape())
            dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
            affine = np.asarray(header.get_affine(), np.float64)
    except KeyError:
        raise InputError(
            f"{content.name}: expected voxels of a type that FreeSurfer has, found number {int(header['type'])}; "
            "convert it with mri_convert"
        ) from None
    except (HeaderDataError, MGHError, *HEADER_ERRORS) as error:
        raise InputError(f"{content.name}: its MGH header cannot be used: {' '.join(str(error).split())}") from None
    return header, shape, dtype, affine


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    from nibabel.freesurfer.mghformat import MGHImage

    data = np.asanyarray(image.dataobj)
    data = data.reshape(*data.shape[:2], -1) if data.ndim == 2 else data
    data = data.astype(MOST_LABELS[data.dtype.name], copy=False)
    made = MGHImage(data, affine_to_write(image, volume))
    header = made.header
    if volume is not None and isinstance(volume.native, MghPlace):
        for field in ("goodRASFlag", "delta", "Mdc", "Pxyz_c"):
            header[field] = volume.native.header[field]
    header.set_data_dtype(data.dtype)
    block = header.binaryblock[:HEADER_SIZE]
    pieces = chain([block + bytes(VOXELS_AT - len(block))], voxel_pieces(data.astype(data.dtype.newbyteorder(">"))))
    yield path, pieces if path.name.lower().endswith(".mgh") else packed(pieces, GZIP, labels=data.dtype.kind in "iu")


MGH = FileFormat("MGH", SUFFIXES, _is_mgh, _read, _write, SUFFIXES)
