"""TIFF: its pages are the slices of a scan. It does not say where the axes run, nor how thick a slice is.

SimpleITK reads the pages, for all their ways of packing. nnU-Net keeps the spacing in a JSON file beside the scan,
which is taken here too. Knows nothing of models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.errors import InputError
from voxtile.extras import require
from voxtile.io.formats.base import Content, FileFormat, Pieces, without_ending
from voxtile.io.geometry import Triple
from voxtile.io.placed import placed
from voxtile.io.stored import Admit, Stored, check_real
from voxtile.io.volume import Volume

SUFFIXES = (".tif", ".tiff")
MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

LIMIT = 4096
"""The most bytes that one byte of a packed page is believed to become; LZW and Deflate stay well below."""

CHANNEL_DIGITS = 5
"""The characters of nnU-Net's channel number, _0000, which its JSON file's name does not have."""

LONGEST_NOTE = 1 << 20
"""Bytes of a JSON file that are read; one with a spacing has a hundred."""


def _is_tiff(content: Content) -> bool:
    return content.packing is None and content.first[:4] in MAGICS


def _read(content: Content, admit: Admit) -> Stored:
    require("SimpleITK", "formats", "a TIFF scan")
    import SimpleITK

    name = content.name
    with _as_file(content) as path:
        reader: Any = SimpleITK.ImageFileReader()  # type: ignore[no-untyped-call]
        reader.SetImageIO("TIFFImageIO")
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            dtype, shape = _claims(reader, name)
            if int(np.prod(shape, dtype=object)) * dtype.itemsize > content.size * LIMIT:
                raise InputError(
                    f"{name}: its header claims more voxels than a file of {content.size:,} bytes can hold"
                )
            admit(shape, dtype, True)  # the image and its copy
            raw = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(f"{name}: expected a TIFF stack that SimpleITK reads, found {_reason(error)}") from None
    spacing = _noted_spacing(content.path)
    missing = ("orientation",) if spacing else ("orientation", "spacing")
    affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0])
    return placed(raw.reshape(shape[::-1]).T, affine, name, spacing=spacing, missing=missing)


@contextmanager
def _as_file(content: Content) -> Iterator[Path]:
    """Yields a file of the content: SimpleITK reads nothing else."""
    if content.path is not None:
        yield content.path
        return
    with tempfile.TemporaryDirectory(prefix="voxtile-") as folder:
        path = Path(folder) / "scan.tif"
        path.write_bytes(content.data or b"")
        yield path


def _claims(reader: Any, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The type of voxels and the size that a file's first page and their number claim."""
    import SimpleITK

    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{name}: expected real numbers as voxels, found colours; convert the scan to a scalar type")
    kinds = {
        SimpleITK.sitkUInt8: "u1", SimpleITK.sitkInt8: "i1", SimpleITK.sitkUInt16: "u2", SimpleITK.sitkInt16: "i2",
        SimpleITK.sitkUInt32: "u4", SimpleITK.sitkInt32: "i4", SimpleITK.sitkFloat32: "f4", SimpleITK.sitkFloat64: "f8",
    }  # fmt: skip
    dtype = np.dtype(kinds.get(reader.GetPixelID(), "V1"))
    check_real(dtype, name)
    shape = tuple(int(size) for size in reader.GetSize())
    return dtype, (*shape, 1)[:3] if len(shape) == 2 else shape


def _reason(error: Exception) -> str:
    """The last sentence of an error of ITK: what comes before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason"


def _noted_spacing(path: Path | None) -> Triple | None:
    """The spacing i, j, k in nnU-Net's JSON file beside a scan, which has it from k to i; None where there is none.

    Raises:
        InputError: the file says something else for a spacing than three numbers above 0.
    """
    for note in _notes(path):
        try:
            with note.open("rb") as file:
                found = json.loads(file.read(LONGEST_NOTE))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(found, dict) or "spacing" not in found:
            continue
        spacing = found["spacing"]
        right = isinstance(spacing, list) and len(spacing) == 3
        if not right or not all(type(step) in (int, float) and 0 < step < 1e6 for step in spacing):
            raise InputError(f"{note}: expected a spacing of three numbers above 0, found {str(spacing)[:80]}")
        k, j, i = map(float, spacing)
        return i, j, k
    return None


def _notes(path: Path | None) -> list[Path]:
    """Where nnU-Net's Tiff3DIO looks for the spacing of a scan, and then of a mask."""
    if path is None:
        return []
    stem = without_ending(path.name, SUFFIXES)
    return [path.with_name(f"{name}.json") for name in (stem[:-CHANNEL_DIGITS], stem) if name]


def _parts(path: Path) -> list[Path]:
    return [note for note in _notes(path) if note.is_file()]


# Writing -------------------------------------------------------------------------------------------------------


def _write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    import SimpleITK

    data = np.asanyarray(image.dataobj)
    data = data[:, :, None] if data.ndim == 2 else data
    with tempfile.TemporaryDirectory(prefix="voxtile-") as folder:
        made = Path(folder) / "mask.tif"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ascontiguousarray(data.T)), str(made), useCompression=True)
        yield path, iter([made.read_bytes()])


def _check_installed(_: Path) -> None:
    require("SimpleITK", "formats", "a TIFF mask")


TIFF = FileFormat("TIFF", SUFFIXES, _is_tiff, _read, _write, SUFFIXES, parts=_parts, check_installed=_check_installed)
