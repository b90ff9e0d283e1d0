"""NIfTI-1 and NIfTI-2: files of one piece, and pairs of a header and voxels; nothing that a header claims is trusted.

nibabel reads the header. The numbers are read here, because a damaged or hostile file must end in one InputError: it
may claim 10¹² voxels, stop in the middle, or be no NIfTI at all. Nothing is allocated that the file's own size could
not fill. Knows nothing of models.

Files are read, never mapped: a mapped file that shrinks while it is in use kills the process with SIGBUS.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, FileFormat, Pieces
from voxtile.io.formats.packing import check_packing, ends_in_other_bytes, packed, packing_for
from voxtile.io.formats.voxels import check_size, read_voxels, skip, truncated, voxel_pieces
from voxtile.io.note import note_bytes
from voxtile.io.stored import HEADER_ERRORS, Admit, Stored, check_not_empty, check_real
from voxtile.io.volume import Volume

LOGGER = logging.getLogger(__name__)

GRAVE_LEVEL = 30
"""nibabel's level of a remark on a header from which a value is changed: WARNING, as in logging."""

UNCHANGED = "leaving at current value"
"""How nibabel's remarks end on a field that it leaves as it is."""

NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
MOST_AXES = 7
NIFTI2_MAGIC = b"2\0\r\n\x1a\n"

CIFTI_INTENTS = range(3000, 3100)
"""NIfTI's intent codes for CIFTI: values on surfaces and of networks, which lie on no grid."""

MORE_BYTES = "the gzip stream is followed by other bytes, which are left out, as nibabel and ITK do"


class Kind(NamedTuple):
    """What the first bytes of a NIfTI file say of it.

    Attributes:
        version: 1 or 2.
        order: its byte order.
        single: whether the voxels follow in the same file.
    """

    version: int
    order: Literal["little", "big"]
    single: bool


class Layout(NamedTuple):
    """Where the voxels of a file lie, and how they are scaled; see `Stored`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    inter: float | None

    @property
    def size(self) -> int:
        """Bytes from the beginning of the file to the end of the voxels."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) not in ((None, None), (1.0, 0.0))


def kind_of(block: bytes) -> Kind | None:
    """Recognises NIfTI by the header's own size and its magic; None for what is no NIfTI."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(block[:4], order)
        if size == NIFTI1_SIZE and block[344:348] in (b"n+1\0", b"ni1\0"):
            return Kind(1, order, block[345:346] == b"+")
        if size == NIFTI2_SIZE and block[4:5] == b"n" and block[6:12] == NIFTI2_MAGIC and block[5:6] in (b"+", b"i"):
            return Kind(2, order, block[5:6] == b"+")
    return None


def _is_single(content: Content) -> bool:
    kind = kind_of(content.first)
    return kind is not None and kind.single


def _read(content: Content, admit: Admit) -> Stored:
    header, warnings = parse_header(content)
    layout = layout_of(header, content.name)
    if layout.offset < NIFTI1_SIZE:
        raise InputError(
            f"{content.name}: expected voxels behind the header, found them to begin at byte {layout.offset}"
        )
    return read_at(content, layout, admit, header, warnings)


def read_at(content: Content, layout: Layout, admit: Admit, header: Any, warnings: tuple[str, ...]) -> Stored:
    """Reads the voxels that lie in `content` where `layout` says, once `admit` allows it.

    Raises:
        InputError: the file cannot hold them, or does not.
    """
    check_size(layout.size, content)
    admit(layout.shape, layout.dtype, layout.scaled)
    with content.stream() as stream:
        skip(stream, layout.offset)
        raw = read_voxels(stream, layout.shape, layout.dtype, content.name, offset=layout.offset)
        if content.packing is not None and ends_in_other_bytes(stream):
            warnings = (*warnings, MORE_BYTES)
    return Stored(raw, layout.slope, layout.inter, header, None, warnings)


def parse_header(content: Content) -> tuple[Any, tuple[str, ...]]:
    """Returns a nibabel header from a file's first bytes, repaired as nibabel repairs it, and what was repaired.

    Raises:
        InputError: it cannot be used, or places no voxels.
    """
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
    from nibabel.spatialimages import HeaderDataError

    block, name, kind = content.first, content.name, kind_of(content.first)
    assert kind is not None, "the format was recognised by this"
    klass, size = (
        (Nifti1Header if kind.single else Nifti1PairHeader, NIFTI1_SIZE)
        if kind.version == 1
        else (Nifti2Header if kind.single else Nifti2PairHeader, NIFTI2_SIZE)
    )
    if len(block) < size:
        raise truncated(len(block), size, name)
    try:
        with np.errstate(all="ignore"):
            header = klass(block[:size], endianness="<" if kind.order == "little" else ">", check=False)
            reports = HeaderReports(name)
            header.check_fix(logger=reports, error_level=40)
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise unusable(error, name) from None
    if int(header["intent_code"]) in CIFTI_INTENTS:
        raise InputError(
            f"{name}: expected a scan, found CIFTI: values on surfaces or of networks, which lie on no grid of voxels; "
            "give the volume that it was made from"
        )
    return header, tuple(reports.grave)


def layout_of(header: Any, name: str) -> Layout:
    """Returns where the voxels lie by a nibabel header. Raises InputError where its fields cannot be used."""
    from nibabel.spatialimages import HeaderDataError

    axes = int(header["dim"][0])
    if not 1 <= axes <= MOST_AXES:
        raise InputError(f"{name}: its NIfTI header cannot be used: it claims {axes} axes, where 1 to 7 are possible")
    try:
        with np.errstate(all="ignore"):
            shape = tuple(int(size) for size in header.get_data_shape())
            dtype, offset = np.dtype(header.get_data_dtype()), int(header.get_data_offset())
            check_not_empty(shape, name)
            check_real(dtype, name)
            slope, inter = header.get_slope_inter()
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise unusable(error, name) from None
    return Layout(shape, dtype, max(offset, 0), slope, inter)


def unusable(error: BaseException, name: str) -> InputError:
    """The error for a header on which a library raised `error`."""
    return InputError(
        f"{name}: its NIfTI header cannot be used: {' '.join(str(error).split()) or type(error).__name__}"
    )


class HeaderReports:
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


# Writing -------------------------------------------------------------------------------------------------------


def header_to_write(image: Any, klass: Any = None) -> Any:
    """Returns the header of `image`, which nibabel made, for voxels that are stored as they are (slope 1, intercept 0).

    Args:
        image: a nibabel NIfTI image.
        klass: the class of header wanted; None for the image's own.
    """
    header = image.header if klass is None else klass(image.header.binaryblock, image.header.endianness, check=False)
    header = header.as_byteswapped("<" if sys.byteorder == "little" else ">")
    header.set_data_dtype(np.asanyarray(image.dataobj).dtype)
    header.set_slope_inter(1.0, 0.0)
    return header


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    data = np.asanyarray(image.dataobj)
    header = header_to_write(image)
    note = note_bytes(image)
    header["vox_offset"] = len(header.binaryblock) + len(note)
    yield path, as_named(chain([header.binaryblock + note], voxel_pieces(data)), path, data)


def as_named(pieces: Pieces, path: Path, data: Any) -> Pieces:
    """The pieces of a file as its name asks for: packed, or as they are."""
    packing = packing_for(path.name)
    return pieces if packing is None else packed(pieces, packing, labels=data.dtype.kind in "iu")


SUFFIXES = (".nii.gz", ".nii", ".nii.bz2", ".nii.xz", ".nii.zst")

NIFTI = FileFormat("NIfTI", SUFFIXES, _is_single, _read, _write, SUFFIXES, check_installed=check_packing)
