"""A whole volume through a network where its arrays lie: NumPy's on the CPU, PyTorch's or CuPy's on a GPU.

The same sums in the same order as `stitch`, but of all planes at once, so that tiles, scores and sums need not leave
the device. Works on arrays of any library that array-api-compat knows. Knows nothing of scans, servers or networks.

    score(voxel) = Σ score(tile, voxel) · weight(voxel in tile) / Σ weight(voxel in tile)      (float32)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from array_api_compat import array_namespace, device

from voxtile.tiling.plan import TilePlan

Array: TypeAlias = Any
"""An array of any library."""


@dataclass(frozen=True)
class VolumePass:
    """How volumes of one shape go through a network.

    Attributes:
        plan: where the tiles lie.
        run: the network: tiles [pass, channel, *roi] -> scores [pass, score, *roi], both on the device.
        batch: passes in one run, at most.
        padding: what voxels outside the volume hold.
        flips: the spatial axes that each pass of a tile is flipped along, the plain pass first; the scores are their
            mean.
        slice_axis: the spatial axis that a 2D network does not have, dropped from its tiles.
    """

    plan: TilePlan
    run: Callable[[Array], Array]
    batch: int
    padding: float
    flips: Sequence[tuple[int, ...]] = ((),)
    slice_axis: int | None = None

    def scores(self, volume: Array) -> Array:
        """Returns the stitched scores [score, *grid], float32, of a `volume` [channel, *grid] in the input type."""
        xp, place = array_namespace(volume), device(volume)
        weights = xp.asarray(self.plan.weights, device=place)
        weighed = xp.zeros(self.plan.padded, dtype=xp.float32, device=place)
        sums = None
        for tile, scores in zip(self.plan, self._tile_scores(xp, self._padded(xp, volume)), strict=True):
            if sums is None:
                sums = xp.zeros((scores.shape[0], *self.plan.padded), dtype=xp.float32, device=place)
            sums[(slice(None), *tile.slices)] += scores * weights
            weighed[tile.slices] += weights
        sums /= weighed
        return sums[(slice(None), *self._inside)]

    @property
    def _inside(self) -> tuple[slice, ...]:
        """The volume without padding."""
        spans = zip(self.plan.before, self.plan.image, strict=True)
        return tuple(slice(first, first + size) for first, size in spans)

    def _padded(self, xp: ModuleType, volume: Array) -> Array:
        if self.plan.tiling.padding_mode != "constant":
            for axis, own in enumerate(self.plan.sources):
                if own is not None:
                    volume = xp.take(volume, xp.asarray(own, device=device(volume)), axis=axis + 1)
            return volume
        shape = (volume.shape[0], *self.plan.padded)
        padded = xp.full(shape, self.padding, dtype=volume.dtype, device=device(volume))
        padded[(slice(None), *self._inside)] = volume
        return padded

    def _tile_scores(self, xp: ModuleType, padded: Array) -> Iterator[Array]:
        """Yields the scores [score, *tile] of each tile in turn, flipped back and averaged in float32."""
        passes = itertools.chain.from_iterable(self._answers(xp, padded))
        for first in passes:
            scores = first
            for flip in self.flips[1:]:
                scores = scores + _flipped(xp, next(passes), flip)
            scores = scores / len(self.flips) if len(self.flips) > 1 else scores
            yield scores if self.slice_axis is None else xp.expand_dims(scores, axis=1 + self.slice_axis)

    def _answers(self, xp: ModuleType, padded: Array) -> Iterator[Array]:
        """Yields the float32 scores [pass, score, *roi] of each batch of passes."""
        passes = (_flipped(xp, self._cut(xp, padded, tile.slices), flip) for tile in self.plan for flip in self.flips)
        while some := list(itertools.islice(passes, self.batch)):
            yield xp.astype(self.run(xp.stack(some)), xp.float32)

    def _cut(self, xp: ModuleType, padded: Array, place: tuple[slice, ...]) -> Array:
        values = padded[(slice(None), *place)]
        return values if self.slice_axis is None else xp.squeeze(values, axis=1 + self.slice_axis)


def _flipped(xp: ModuleType, values: Array, axes: tuple[int, ...]) -> Array:
    """`values` [channel, *spatial] flipped along the spatial `axes`."""
    return xp.flip(values, axis=tuple(1 + axis for axis in axes)) if axes else values
