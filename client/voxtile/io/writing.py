"""Writes labels and scores as images on the scan's own grid; a file appears whole or not at all.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import OutputError
from voxtile.io.atomic import atomic_file
from voxtile.io.formats.all import format_to_write, pieces_to_write
from voxtile.io.volume import Volume

GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

NIFTI_SUFFIXES = (".nii", ".nii.gz")


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
        OutputError: it does not end as a file of a format does that is written.
    """
    format_to_write(Path(path))


def check_nifti_name(path: str | Path) -> None:
    """Checks the name of what is written as NIfTI alone.

    Raises:
        OutputError: it does not end in .nii or .nii.gz.
    """
    if not str(path).endswith(NIFTI_SUFFIXES):
        raise OutputError(f"{path}: expected a name that ends in .nii or .nii.gz")


def write_image(image: Any, path: str | Path, volume: Volume | None = None) -> None:
    """Writes a nibabel NIfTI image atomically, in the format that the name asks for; the same image, the same bytes.

    Voxels are stored as they are (slope 1, intercept 0); header extensions other than `voxtile.io.note`'s are left out.

    Args:
        image: the nibabel image.
        path: a name that ends in one of `voxtile.io.formats.all.MASK_SUFFIXES`.
        volume: the scan that the image is a mask of. Its geometry is repeated to the bit in its own format, and to
            float64 in another one; without it, the image's own affine counts.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: its format needs a package that is not installed.
    """
    write_images([(image, path)], volume)


def write_images(images: Iterable[tuple[Any, str | Path]], volume: Volume | None = None) -> None:
    """Writes each image to its path as `write_image` does; none of them takes its name before all are written."""
    with contextlib.ExitStack() as whole:
        for image, path in images:
            for file, pieces in pieces_to_write(image, volume, Path(path)):
                opened = whole.enter_context(atomic_file(file))
                for piece in pieces:
                    opened.write(piece)


def image_bytes(image: Any, compressed: bool) -> bytes:
    """Returns the bytes that `write_image` puts into a NIfTI file.

    Args:
        image: the nibabel image.
        compressed: whether as `.nii.gz`, else as `.nii`.
    """
    ((_, pieces),) = pieces_to_write(image, None, Path("image.nii.gz" if compressed else "image.nii"))
    return b"".join(pieces)


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
