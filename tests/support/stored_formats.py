"""One scan in files of every format, written by the format's own library, and what that library reads of a file."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from backports import zstd
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Write = Callable[[Path, NDArray[Any], NDArray[np.float64]], None]


def by_nibabel(klass: Any) -> Write:
    """Writes with a class of nibabel's."""

    def write(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
        image = klass(data, affine)
        if hasattr(image, "set_sform"):
            image.set_sform(affine, code=1)
        nib.save(image, path)

    return write


def packed_by(pack: Callable[[bytes], bytes], klass: Any = nib.Nifti1Image) -> Write:
    """Writes a NIfTI file and packs it."""

    def write(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
        path.write_bytes(pack(klass(data, affine).to_bytes()))

    return write


def itk_image(data: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """A SimpleITK image of [i, j, k] voxels that `affine` places in RAS."""
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(data.T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def by_itk(compressed: bool) -> Write:
    """Writes with SimpleITK."""

    def write(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
        SimpleITK.WriteImage(itk_image(data, affine), str(path), useCompression=compressed)

    return write


WRITERS: dict[str, Write] = {
    "a.nii": by_nibabel(nib.Nifti1Image),
    "a.NII.GZ": packed_by(gzip.compress),
    "a.Nii": packed_by(bytes, nib.Nifti2Image),
    "a.nii.bz2": packed_by(bz2.compress),
    "a.nii.xz": packed_by(lzma.compress),
    "a.nii.zst": packed_by(zstd.compress),
    "a.hdr": by_nibabel(nib.Nifti1Pair),
    "a.img": by_nibabel(nib.Nifti2Pair),
    "a.img.gz": by_nibabel(nib.Nifti1Pair),
    "a.mgh": by_nibabel(nib.MGHImage),
    "a.mgz": by_nibabel(nib.MGHImage),
    "a.nrrd": by_itk(True),
    "b.nrrd": by_itk(False),
    "a.nhdr": by_itk(True),
    "a.mha": by_itk(True),
    "b.mha": by_itk(False),
    "a.mhd": by_itk(True),
    "b.mhd": by_itk(False),
}
"""The name of a file, whose ending is a format's, and who writes it."""


def read_back(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels [i, j, k] and the affine to RAS of a file, as nibabel or SimpleITK reads it."""
    name = path.name.lower()
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd", ".tif")):
        image = SimpleITK.ReadImage(str(path))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        return SimpleITK.GetArrayFromImage(image).T, LPS_TO_RAS @ affine
    if ".hdr" in name or ".img" in name:
        image = nib.load(path)
    else:
        unpack = next((unpack for ending, unpack in UNPACKERS.items() if name.endswith(ending)), bytes)
        content = unpack(path.read_bytes())
        klass = nib.MGHImage if ".mg" in name else nib.Nifti2Image if content[:1] == b"\x1c" else nib.Nifti1Image
        image = klass.from_bytes(content)
    return np.asarray(image.dataobj), image.affine


UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".mgz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": zstd.decompress,
}
