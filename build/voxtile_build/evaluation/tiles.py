"""Tiles cut from a scan: the places where engines may differ, such as corners and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.evaluation.samples import Scan
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec


@dataclass(frozen=True)
class Tile:
    """One tile.

    Attributes:
        name: where it lies.
        roi: [channel, *roi] in the input's data type.
        statistics: of the whole scan, as in `Scan`.
    """

    name: str
    roi: Array
    statistics: Array


def tile_inputs(spec: Spec, rois: Array, statistics: Array) -> dict[str, Array]:
    """The graph's inputs by name.

    Args:
        spec: the model.
        rois: [batch, channel, *spatial].
        statistics: [batch, channel, 2].
    """
    inputs: dict[str, Array] = {"roi": rois}
    if spec.whole_scan_intensity:
        inputs["intensity"] = np.ascontiguousarray(statistics, dtype=np.float32)
    return inputs


def cut_tiles(scan: Scan, spec: Spec) -> tuple[Tile, ...]:
    """Tiles of a scan (for a 2D network, of its middle slice): two corners, the middle, one half outside, zeros.

    Where slices of any size are taken, also a whole slice, the smallest one possible, and one a step larger than
    roi_size.
    """
    volume = scan.volume
    if spec.tiling.slice_axis is not None:
        axis = spec.tiling.slice_axis + 1
        volume = volume.take(volume.shape[axis] // 2, axis=axis)
    sizes = list(zip(volume.shape[1:], spec.tiling.roi_size, strict=True))
    starts = {
        "first corner": [0 for _ in sizes],
        "middle": [(size - roi) // 2 for size, roi in sizes],
        "last corner": [size - roi for size, roi in sizes],
        "half outside": [-(roi // 2) for _, roi in sizes],
    }
    rois = {name: _cut(volume, start, spec.tiling.roi_size, spec) for name, start in starts.items()}
    rois["zeros"] = np.zeros_like(rois["middle"])
    return tuple(Tile(name, roi, scan.statistics) for name, roi in {**rois, **_other_sizes(volume, spec)}.items())


def _other_sizes(volume: Array, spec: Spec) -> dict[str, Array]:
    """From the middle of `volume` [channel, height, width], where slices of any size are taken."""
    step = spec.tiling.multiple
    if step is None:
        return {}
    wanted = {
        "whole slice": spec.tiling.over(volume.shape[1:]).roi_size,
        "smallest": (step, step),
        "a step larger": tuple(roi + step for roi in spec.tiling.roi_size),
    }
    tiles = {}
    for name, roi in wanted.items():
        # The odd voxel of padding comes last, as everywhere.
        start = [-((side - size) // 2) for size, side in zip(volume.shape[1:], roi, strict=True)]
        tiles[f"{name}, {' × '.join(map(str, roi))}"] = _cut(volume, start, roi, spec)
    return tiles


def _cut(volume: Array, start: list[int], tile_size: Sequence[int], spec: Spec) -> Array:
    """The tile of `volume` [channel, *spatial] at `start`; voxels outside the volume hold the padding value."""
    tile = np.full((len(volume), *tile_size), PADDING[spec.input.dtype], dtype=volume.dtype)
    source, target = [slice(None)], [slice(None)]
    for first, roi, size in zip(start, tile_size, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + roi, size)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    tile[tuple(target)] = volume[tuple(source)]
    return tile
