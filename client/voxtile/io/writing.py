"""Writes labels and scores as NIfTI images on the scan's own grid; a file appears whole or not at all.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import OutputError
from voxtile.io.atomic import atomic_file
from voxtile.io.scaling import memory_order
from voxtile.io.volume import Volume

GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

SUFFIXES = (".nii", ".nii.gz")

GZIP_LEVEL = 1
"""Masks are runs of equal bytes: with run lengths alone (Z_RLE), this level packs them smaller than level 3 does."""

TRANSPOSE_ROWS = 16
"""Rows exchanged at a time while axes are put into a file's order: 512 × 64 × 16 bytes stay in the cache."""

WRITE_BYTES = 1 << 24
"""Bytes written at a time."""


def mask_image(labels: NDArray[Any], volume: Volume) -> Any:
    """Returns a nibabel image of `labels` with the geometry of `volume`.

    Affine, qform, sform, their codes, units and the version of NIfTI are the scan's. Nothing else of its header is
    repeated, since descriptions may name a patient.

    Args:
        labels: [i, j, k], or scores [i, j, k, score] float32. Integers and truth values become uint8, or uint16 where
            a value exceeds 255.
        volume: the scan.
    """
    from nibabel.nifti1 import Nifti1Image
    from nibabel.nifti2 import Nifti2Header, Nifti2Image

    if labels.shape[:3] != volume.shape:
        raise ValueError(f"labels of shape {labels.shape} for a scan of shape {volume.shape}")
    if labels.dtype.kind in "biu" and labels.dtype not in (np.uint8, np.uint16):
        labels = labels.astype(np.uint16 if labels.max(initial=0) > 255 else np.uint8)
    if labels.shape[2:] == (1,) and int(volume.header["dim"][0]) == 2:
        labels = labels[:, :, 0]  # a scan of two axes gets a mask of two axes
    klass = Nifti2Image if isinstance(volume.header, Nifti2Header) else Nifti1Image
    header = _mask_header(klass.header_class, labels, volume)
    # The header's own affine, to the bit: nibabel then leaves both forms and their codes as they are.
    return klass(labels, header.get_best_affine(), header)


def check_mask_name(path: str | Path) -> None:
    """Checks the name of a mask.

    Raises:
        OutputError: it does not end in .nii or .nii.gz.
    """
    if not str(path).endswith(SUFFIXES):
        raise OutputError(f"{path}: expected a name that ends in .nii or .nii.gz")


def write_image(image: Any, path: str | Path) -> None:
    """Writes a nibabel NIfTI image atomically; the same image gives the same bytes.

    Voxels are stored as they are (slope 1, intercept 0); header extensions are left out.

    Args:
        image: the nibabel image.
        path: a name that ends in `.nii` or `.nii.gz`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_images([(image, path)])


def write_images(images: Iterable[tuple[Any, str | Path]]) -> None:
    """Writes each image to its path as `write_image` does; none of them takes its name before all are written."""
    with contextlib.ExitStack() as whole:
        for image, path in images:
            check_mask_name(path)
            _write_image(image, whole.enter_context(atomic_file(path)), compressed=str(path).endswith(".gz"))


def image_bytes(image: Any, compressed: bool) -> bytes:
    """Returns the bytes that `write_image` puts into a file.

    Args:
        image: the nibabel image.
        compressed: whether as `.nii.gz`, else as `.nii`.
    """
    file = io.BytesIO()
    _write_image(image, file, compressed)
    return file.getvalue()


def _write_image(image: Any, file: BinaryIO, compressed: bool) -> None:
    header = image.header.as_byteswapped("<" if sys.byteorder == "little" else ">")
    data = np.asanyarray(image.dataobj)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = header.single_vox_offset
    padding = bytes(header.single_vox_offset - len(header.binaryblock))
    pieces = _pieces(header.binaryblock + padding, data)
    _write_all(file, _deflated(pieces, masks=data.dtype.kind in "iu") if compressed else pieces)


def _mask_header(klass: Any, data: NDArray[Any], volume: Volume) -> Any:
    """Returns a new header with the scan's geometry, copied field by field, so that no bit of it is computed anew."""
    header, scan = klass(), volume.header
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    for field in GEOMETRY_FIELDS:
        header[field] = scan[field]
    header["pixdim"][:4] = scan["pixdim"][:4]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return header


def _pieces(header: bytes, data: NDArray[Any]) -> Iterator[bytes | memoryview]:
    """Yields a file's bytes: the header, then the voxels, first axis fastest, a few planes at a time."""
    yield header
    data = data[:, :, None] if data.ndim == 2 else data
    for volume in [data] if data.ndim == 3 else np.moveaxis(data, 3, 0):
        step = max(WRITE_BYTES * volume.shape[2] // max(volume.nbytes, 1), 1)
        for first in range(0, volume.shape[2], step):
            yield _in_file_order(volume[:, :, first : first + step]).T.data.cast("B")


def _in_file_order(values: NDArray[Any]) -> NDArray[Any]:
    """Returns `values` [i, j, k] with i fastest in memory.

    Blocks are exchanged one by one within the cache. Copied in one go, every byte would come from a memory page of its
    own, which takes six times as long.
    """
    fastest = memory_order(values)[-1]
    if fastest == 0:
        return np.asfortranarray(values)
    middle = 3 - fastest
    result = np.empty(values.shape[::-1], values.dtype).T
    source, target = values.transpose(middle, 0, fastest), result.transpose(middle, fastest, 0)
    for first in range(0, len(source), TRANSPOSE_ROWS):
        rows = slice(first, first + TRANSPOSE_ROWS)
        block = np.ascontiguousarray(source[rows])
        target[rows] = np.ascontiguousarray(block.transpose(0, 2, 1))
    return result


def _deflated(pieces: Iterator[bytes | memoryview], masks: bool) -> Iterator[bytes | memoryview]:
    """Yields a gzip stream without a time or a name in it, so that equal masks are equal files."""
    strategy = zlib.Z_RLE if masks else zlib.Z_DEFAULT_STRATEGY
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, strategy)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _write_all(file: BinaryIO, pieces: Iterator[bytes | memoryview]) -> None:
    for piece in pieces:
        file.write(piece)
