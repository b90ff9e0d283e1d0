"""What TotalSegmentator 2.18 does around nnU-Net, step by step, with nibabel, scipy and nnU-Net's own predictor.

Its package needs more than the tests have; on generated models, these steps were compared with its own code once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from tests.support.nnunet_folders import Oracle, single_precision


@dataclass(frozen=True)
class OraclePart:
    """A trained folder, its fold, and what its labels are in the mask."""

    folder: Path
    values: Mapping[int, int]
    fold: int | str = 0


def resampled(image: Any, spacing: Sequence[float], order: int) -> Any:
    """The image with voxels of `spacing`, its values cut to whole numbers; itself where it has that spacing."""
    zooms = np.array(image.header.get_zooms())
    if np.array_equal(zooms, np.array(spacing)):
        return image
    factors = zooms / np.array(spacing)
    data = ndimage.zoom(image.get_fdata(), factors, order=order, mode="nearest").astype(np.int32)
    affine = image.affine.copy()
    affine[:3, :3] /= factors
    return nib.Nifti1Image(data, affine)


def segment(
    image: Any,
    parts: Sequence[OraclePart],
    spacing: Sequence[float] | None,
    folder: Path,
    *,
    order: int = 1,
    tile_step_size: float = 0.8,
    largest: Sequence[int] = (),
    small: Mapping[int, float] = {},
    box_labels: NDArray[Any] | None = None,
    margin: float = 20.0,
) -> NDArray[Any]:
    """The mask [i, j, k] of a scan.

    Args:
        image: nibabel's, of one channel.
        parts: in order.
        spacing: millimetres of the common grid; None to leave the scan's.
        folder: for files in between.
        order: of the splines.
        tile_step_size: nnU-Net's.
        largest: labels of which the largest component alone is kept.
        small: labels whose components up to so many mm³ are removed.
        box_labels: where to look: the box around these voxels.
        margin: millimetres around that box.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, box = nib.Nifti1Image(image.get_fdata(), image.affine), None
    if box_labels is not None:
        whole, box = _cropped(whole, box_labels, margin)
    canonical = nib.as_closest_canonical(whole)
    common = canonical if spacing is None else resampled(canonical, spacing, order)
    nib.save(common, folder / "s01_0000.nii.gz")
    mask = np.zeros(common.shape, np.uint8)
    for number, part in enumerate(parts):
        oracle = Oracle(part.folder, [part.fold])
        oracle.predictor.tile_step_size = tile_step_size
        oracle.predictor.use_mirroring = False
        with single_precision():
            oracle.predict([folder / "s01_0000.nii.gz"], folder / f"part_{number}.nii.gz")
        found = np.asarray(nib.load(folder / f"part_{number}.nii.gz").dataobj)
        for label, value in part.values.items():
            mask[found == label] = value
    voxel = np.prod(nib.Nifti1Image(mask, common.affine).header.get_zooms())
    for label in largest:
        _keep(mask, label, lambda sizes: sizes == sizes.max(), first=True)
    for label, most in small.items():
        _keep(mask, label, lambda sizes, most=most: sizes > most / voxel)
    if mask.shape != canonical.shape:
        mask = ndimage.zoom(
            mask.astype(float), np.array(canonical.shape) / np.array(mask.shape), order=0, mode="nearest"
        ).astype(np.uint8)
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(whole.affine))
    labels = np.asarray(nib.Nifti1Image(mask, canonical.affine).as_reoriented(back).dataobj)
    if box is None:
        return labels
    full = np.zeros(image.shape, np.uint8)
    full[box] = labels
    return full


def _keep(mask: NDArray[Any], label: int, wanted: Any, *, first: bool = False) -> None:
    components, count = ndimage.label(mask == label)
    sizes = np.array([(components == one).sum() for one in range(1, count + 1)])
    kept = 1 + np.flatnonzero(wanted(sizes)) if count else []
    mask[(mask == label) & ~np.isin(components, kept[:1] if first else kept)] = 0


def _cropped(image: Any, labels: NDArray[Any], margin: float) -> tuple[Any, Any]:
    margins = (margin / np.array(image.header.get_zooms())).astype(int)
    box = tuple(
        slice(max(where.min() - more, 0), min(where.max() + 1 + more, size))
        for where, more, size in zip(np.where(labels), margins, image.shape, strict=True)
    )
    affine = image.affine.copy()
    affine[:3, 3] = (image.affine @ [*(part.start for part in box), 1])[:3]
    return nib.Nifti1Image(image.get_fdata()[box].astype(np.int32), affine), box
