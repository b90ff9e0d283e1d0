"""Pairs of a header and voxels (.hdr and .img): NIfTI, and Analyze, which does not say where its axes run.

A mask is written as a NIfTI pair, which readers of Analyze take too. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, FileFormat, Pieces, ends_in
from voxtile.io.formats.nifti import (
    NIFTI1_SIZE,
    HeaderReports,
    as_named,
    header_to_write,
    kind_of,
    layout_of,
    parse_header,
    read_at,
    unusable,
)
from voxtile.io.formats.voxels import truncated, voxel_pieces
from voxtile.io.placed import nifti_header
from voxtile.io.stored import HEADER_ERRORS, Admit, Stored
from voxtile.io.volume import Volume

HEADERS, VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")


def _is_pair(content: Content) -> bool:
    kind = kind_of(content.first)
    sizes = (int.from_bytes(content.first[:4], order) for order in ("little", "big"))
    return not kind.single if kind else NIFTI1_SIZE in sizes


def _read(content: Content, admit: Admit) -> Stored:
    voxels = _voxels_of(content)
    if kind_of(content.first) is None:
        return _read_analyze(content, voxels, admit)
    header, warnings = parse_header(content)
    return read_at(voxels, layout_of(header, content.name), admit, header, warnings)


def _voxels_of(content: Content) -> Content:
    """The file of voxels that belongs to a header."""
    if content.path is None:
        return content.beside(".img")  # says what is missing
    names = [path.name for path in _others(content.path)]
    if not names and len(content.first) < NIFTI1_SIZE:
        raise truncated(len(content.first), NIFTI1_SIZE, content.name)
    if not names:
        raise InputError(
            f"{content.name}: expected a scan in one file, found the header of a .hdr/.img pair under another name; "
            "name it .hdr, with its .img beside it"
        )
    there = [name for name in names if content.path.with_name(name).is_file()]
    if len(there) > 1:
        raise InputError(f"{content.name}: expected one file of voxels beside it, found {' and '.join(there)}")
    return content.beside(*there or names[:1])


def _read_analyze(content: Content, voxels: Content, admit: Admit) -> Stored:
    """Reads an Analyze pair as nibabel does, with SPM's scale; its direction and origin are not known."""
    from nibabel.spatialimages import HeaderDataError
    from nibabel.spm2analyze import Spm2AnalyzeHeader

    block, name = content.first, content.name
    if len(block) < NIFTI1_SIZE:
        raise truncated(len(block), NIFTI1_SIZE, name)
    assert content.path is not None, "its voxels were found beside it"
    matrix = content.path.with_name(content.path.name[: -len(ends_in(content.path.name, HEADERS))] + ".mat")
    if matrix.exists():
        raise InputError(
            f"{name}: its orientation stands in {matrix.name}, which is not read; convert the pair to NIfTI with SPM"
        )
    order = "<" if int.from_bytes(block[:4], "little") == NIFTI1_SIZE else ">"
    try:
        with np.errstate(all="ignore"):
            header = Spm2AnalyzeHeader(block[:NIFTI1_SIZE], endianness=order, check=False)
            reports = HeaderReports(name)
            header.check_fix(logger=reports, error_level=40)
            layout = layout_of(header, name)
            spacing = np.asarray(header["pixdim"][1:4], np.float64)
            made = nifti_header(header)
    except (HeaderDataError, *HEADER_ERRORS) as error:
        raise unusable(error, name) from None
    stored = read_at(voxels, layout, admit, made, tuple(reports.grave))
    i, j, k = spacing.tolist()
    affine = np.diag([i, j, k, 1.0])
    return replace(stored, affine=affine, spacing=(i, j, k), missing=("orientation",))


def _others(path: Path) -> list[Path]:
    """Where the voxels of a header may lie."""
    ending = ends_in(path.name, HEADERS)
    stem = path.name[: len(path.name) - len(ending)]
    endings = (".img", ".IMG", ".img.gz", ".IMG.GZ") if ending else ()
    return [path.with_name(stem + other) for other in endings]


def header_beside(path: Path) -> Path | None:
    """The header of a file of voxels; None where there is none."""
    ending = ends_in(path.name, VOXELS)
    stem = path.name[: len(path.name) - len(ending)]
    names = [stem + other for other in (".hdr", ".HDR", ".hdr.gz", ".HDR.GZ")] if ending else []
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _parts(path: Path) -> list[Path]:
    return [other for other in _others(path) if other.is_file()]


# Writing -------------------------------------------------------------------------------------------------------


def _named(path: Path) -> tuple[Path, Path]:
    """The two files of a mask, whichever of them is named: header and voxels."""
    ending = path.name[-len(ends_in(path.name, (*HEADERS, *VOXELS))) :]
    stem, kind, packed = path.name[: -len(ending)], ending[1:4], ending[4:]
    other = {"hdr": "img", "img": "hdr"}[kind.lower()]
    beside = path.with_name(f"{stem}.{other.upper() if kind.isupper() else other}{packed}")
    return (path, beside) if other == "img" else (beside, path)


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    from nibabel.nifti1 import Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    data = np.asanyarray(image.dataobj)
    header = header_to_write(image, Nifti2PairHeader if isinstance(image.header, Nifti2Header) else Nifti1PairHeader)
    header["magic"] = header.pair_magic
    header["vox_offset"] = 0
    first, second = _named(path)
    yield second, as_named(voxel_pieces(data), second, data)
    yield first, as_named(iter([header.binaryblock + bytes(4)]), first, data)


def _written_parts(path: Path) -> list[Path]:
    return [file for file in _named(path) if file != path]


PAIR = FileFormat(
    "NIfTI or Analyze pair",
    HEADERS,
    _is_pair,
    _read,
    _write,
    (*HEADERS, *VOXELS),
    parts=_parts,
    written_parts=_written_parts,
    part_suffixes=VOXELS,
)
