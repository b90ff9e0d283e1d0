"""Brings a scan to the grid that all networks of a set share, and labels back from it.

The steps and their arithmetic are those of TotalSegmentator 2.18: the axes are turned to RAS, voxels are resampled by
scipy's `zoom` and cut to whole numbers, and labels come back by the nearest voxel. Knows nothing of networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.grid_limit import GridLimit, check_unit
from voxtile.errors import InputError
from voxtile.io.orientation import Orientation
from voxtile.io.volume import Volume

Triple = tuple[int, int, int]
WHOLE_NUMBERS = np.iinfo(np.int32)


@dataclass(frozen=True)
class CommonGrid:
    """A scan on the grid of a set.

    Attributes:
        volume: the scan there.
        axes: from the scan's axes to those of the grid.
        turned: voxels of the scan along the grid's axes.
    """

    volume: Volume
    axes: Orientation
    turned: Triple

    def undo(self, labels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Returns `labels` [x, y, z] on the common grid as [i, j, k] on the scan's own, by the nearest voxel."""
        if labels.shape != self.turned:
            from scipy.ndimage import zoom

            factors = np.array(self.turned) / np.array(labels.shape)
            labels = zoom(labels, factors, order=0, mode="nearest")
        return np.ascontiguousarray(self.axes.undo(labels))


def common_grid(volume: Volume, card: Card, max_bytes: int | None = None) -> CommonGrid:
    """Returns `volume` on the common grid of the set of `card`.

    Args:
        volume: the scan.
        card: the set's card: the grid's orientation and spacing, and the order of the splines.
        max_bytes: limit for what resampling takes; None for the machine's own memory.

    Raises:
        InputError: the grid has no voxels, or the scan has values beyond 32-bit whole numbers.
        MemoryLimitError: resampling needs more than `max_bytes`.
    """
    axes = Orientation() if card.orientation is None else volume.towards(card.orientation)
    affine = axes.apply_to_affine(volume.affine, volume.shape)
    turned = replace(volume, data=axes.apply(volume.data), affine=affine, header=None)
    shape = turned.shape
    # nibabel keeps the voxel sizes of an image in its header, as float32.
    sizes = np.asarray(turned.spacing, np.float32)
    if card.spacing is None or card.parts is None or np.array_equal(sizes, card.spacing):
        return CommonGrid(_placed(turned, volume), axes, shape)
    check_unit(volume, turned.spacing, card.spacing)
    factors = sizes / np.asarray(card.spacing, np.float64)
    grid = tuple(round(size * float(factor)) for size, factor in zip(shape, factors, strict=True))
    working = (8 + 4 * volume.channels) * math.prod(grid) + (8 * math.prod(shape) if card.parts.order > 1 else 0)
    GridLimit(volume.names[0], max_bytes).check(shape, turned.spacing, grid, working)
    data = _resampled(turned, factors, card.parts.order)
    affine = affine.copy()
    affine[:3, :3] /= factors
    return CommonGrid(_placed(replace(turned, data=data, affine=affine), volume), axes, shape)


def _resampled(volume: Volume, factors: NDArray[np.float64], order: int) -> NDArray[np.int32]:
    """[channel, x, y, z] the values cut to whole numbers, as TotalSegmentator stores them for nnU-Net."""
    from scipy.ndimage import zoom

    made = []
    for channel in volume.data:
        values = zoom(channel, factors, output=np.float64, order=order, mode="nearest")
        if not WHOLE_NUMBERS.min <= float(values.min()) <= float(values.max()) <= WHOLE_NUMBERS.max:
            raise InputError(
                f"{volume.names[0]}: expected values that 32-bit whole numbers can hold, found one of "
                f"{float(np.abs(values).max()):g}"
            )
        made.append(values.astype(np.int32))
    return np.stack(made)


def _placed(volume: Volume, scan: Volume) -> Volume:
    """The volume with the geometry that a NIfTI file of it would have, which rounds to float32."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape(volume.shape)
    header.set_sform(volume.affine, code="aligned")
    header.set_qform(volume.affine, code="unknown")
    i, j, k = (float(size) for size in header.get_zooms())
    return replace(
        volume, affine=header.get_sform(), header=header, reader_spacing=(i, j, k), unit=1.0, warnings=scan.warnings
    )
