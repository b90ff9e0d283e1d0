"""The spline zoom of one axis as a banded matrix, and the products of it with a slab of a volume.

An axis-aligned spline zoom is linear and separable. So `skimage.transform.resize(mode="edge", anti_aliasing=False)`, on
which nnU-Net's default resampling rests, is a matrix along each axis, followed by a clip to the range of its input. The
cubic prefilter is written in closed form (Unser, "Splines: a perfect fit for signal and image processing", 1999): its
impulse response is √3·z^|i| with z = √3 - 2. Each row of a matrix is therefore a short band, and a volume needs tens of
multiply-adds for each voxel and axis, all of them inside BLAS.

Knows nothing of channels, threads, spacings or plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["scipy", "torch"]

SPLINE_POLE = float(np.sqrt(3.0) - 2.0)
EXACT_REACH = 28
"""Taps of the prefilter to either side: beyond them its response, |z|^28 = 1e-16, is below float64's rounding."""
SINGLE_REACH = 15
"""The same for float32: |z|^16 = 7e-10 is a hundredth of one float32 rounding step."""
BLOCK_ROWS = {0: 32, 1: 32, 3: 64}
"""Output rows that share one dense sub-matrix: a trade between wasted zeros and small products."""


def check_order(order: int) -> int:
    """Returns the spline order: 0 (nearest), 1 (linear) or 3 (cubic).

    Raises:
        ValueError: it is another one.
    """
    if order not in BLOCK_ROWS:
        raise ValueError(f"expected a spline order of 0, 1 or 3, got {order!r}; nnU-Net's own plans use only these")
    return order


def sample_positions(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Returns [n_out] the centres of the output voxels in input voxels (align_corners False, half-voxel offset)."""
    positions: NDArray[Any] = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    return positions


def _torch_positions(n_in: int, n_out: int, offset: float) -> NDArray[np.float64]:
    # torch.nn.functional.interpolate computes coordinates in float32, which decides voxels of large grids.
    scale = np.float32(n_in) / np.float32(n_out)
    centres = np.arange(n_out, dtype=np.float32) + np.float32(0.5)
    return (centres * scale - np.float32(offset)).astype(np.float64)


def _nearest_taps(n_in: int, n_out: int, rule: Rule) -> NDArray[np.int64]:
    if rule == "torch":
        return np.minimum(np.floor(_torch_positions(n_in, n_out, 0.0)), n_in - 1).astype(np.int64)[:, None]
    inside = np.clip(sample_positions(n_in, n_out), 0, n_in - 1)
    return np.floor(inside + 0.5).astype(np.int64)[:, None]


def _linear_taps(n_in: int, n_out: int, rule: Rule) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    positions = _torch_positions(n_in, n_out, 0.5) if rule == "torch" else sample_positions(n_in, n_out)
    inside = np.clip(positions, 0, n_in - 1)
    left = np.floor(inside).astype(np.int64)
    weight = inside - left
    columns = np.stack([left, np.minimum(left + 1, n_in - 1)], axis=1)
    return columns, np.stack([1 - weight, weight], axis=1)


def _cubic_taps(n_in: int, n_out: int, reach: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # Beyond its border scipy continues the scan by its edge value, so taps outside fall on the edge voxel.
    positions = sample_positions(n_in, n_out)
    left = np.floor(positions).astype(np.int64)
    t = (positions - left)[:, None]
    basis = np.concatenate([(1 - t) ** 3, 4 - 3 * t**2 * (2 - t), 4 - 3 * (1 - t) ** 2 * (1 + t), t**3], axis=1) / 6
    offsets = np.arange(-1 - reach, 3 + reach)
    response = np.sqrt(3.0) * SPLINE_POLE ** np.abs(offsets[None] - np.arange(-1, 3)[:, None])
    return np.clip(left[:, None] + offsets[None], 0, n_in - 1), basis @ response


class AxisZoom:
    """The zoom of one axis: for each output voxel, the input voxels that it reads and their weights.

    Args:
        n_in: voxels of the input.
        n_out: voxels of the output.
        order: spline order.
        rule: "scipy" is scipy.ndimage's order 0, 1 or 3 with half-voxel offsets and replicated edges; "torch" is
            `torch.nn.functional.interpolate` with align_corners False: "nearest-exact" (order 0) or linear (order 1).
        dtype: of the matrices.

    Raises:
        ValueError: an axis without voxels, or another order.
    """

    def __init__(self, n_in: int, n_out: int, order: int, rule: Rule = "scipy", *, dtype: Any = np.float32) -> None:
        if n_in < 1 or n_out < 1:
            raise ValueError(f"expected axes of at least 1 voxel, got {n_in} voxels to be resampled to {n_out}")
        self.n_in, self.n_out, self.order = n_in, n_out, check_order(order)
        self.dtype = np.dtype(dtype)
        if order == 0:
            self.columns = _nearest_taps(n_in, n_out, rule)
            self.weights = np.ones((n_out, 1))
        elif order == 1:
            self.columns, self.weights = _linear_taps(n_in, n_out, rule)
        else:
            reach = SINGLE_REACH if self.dtype == np.float32 else EXACT_REACH
            self.columns, self.weights = _cubic_taps(n_in, n_out, reach)
        self._blocks: dict[tuple[int, int], NDArray[Any]] = {}

    def support(self, start: int, stop: int) -> slice:
        """Returns the input voxels that the output voxels start … stop-1 read."""
        columns = self.columns[start:stop]
        return slice(int(columns.min()), int(columns.max()) + 1)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Returns the matrix [stop - start, length of `support(start, stop)`] of the output voxels start … stop-1."""
        found = self._blocks.get((start, stop))
        if found is None:
            reads = self.support(start, stop)
            found = self._blocks[start, stop] = self._dense(start, stop, reads).astype(self.dtype)
        return found

    def _dense(self, start: int, stop: int, reads: slice) -> NDArray[np.float64]:
        dense = np.zeros((stop - start, reads.stop - reads.start))
        rows = np.arange(stop - start)[:, None]
        np.add.at(dense, (rows, self.columns[start:stop] - reads.start), self.weights[start:stop])
        return dense

    def nearest(self, start: int, stop: int) -> NDArray[np.int64]:
        """Returns, for order 0, the positions of the input voxels within `support(start, stop)`."""
        found: NDArray[np.int64] = self.columns[start:stop, 0] - self.support(start, stop).start
        return found

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yields the output voxels in blocks that share one matrix."""
        step = BLOCK_ROWS[self.order]
        return ((start, min(start + step, self.n_out)) for start in range(0, self.n_out, step))


@lru_cache(maxsize=64)
def axis_zoom(n_in: int, n_out: int, order: int, rule: Rule, double: bool) -> AxisZoom | None:
    """Returns the zoom of one axis, or None where it changes nothing (equal sizes)."""
    if n_in == n_out:
        return None
    return AxisZoom(n_in, n_out, order, rule, dtype=np.float64 if double else np.float32)


class Scratch:
    """Intermediate arrays, used again for every slab: new memory costs more than the products in it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._buffers: dict[str, NDArray[Any]] = {}

    def array(self, name: str, *shape: int) -> NDArray[Any]:
        """Returns an uninitialised array of `shape`, which may be the memory of the last one of the same name."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, self.dtype)
        return buffer[:size].reshape(shape)

    def contiguous(self, name: str, source: NDArray[Any]) -> NDArray[Any]:
        """Returns `source` where it is contiguous and of this dtype, else a copy that is."""
        if source.dtype == self.dtype and source.flags.c_contiguous:
            return source
        copy = self.array(name, *source.shape)
        copy[...] = source
        return copy


def _taken(slab: NDArray[Any], voxels: NDArray[np.int64], axis: int, out: NDArray[Any]) -> NDArray[Any]:
    return np.take(slab, voxels, axis, out, "clip")  # by "raise", the default, `out` would be buffered


def zoom_first_axis(slab: NDArray[Any], zoom: AxisZoom | None, start: int, stop: int, scratch: Scratch) -> NDArray[Any]:
    """Returns output rows start … stop-1 along axis 0 [stop - start, y, x], from `slab` [support, y, x]."""
    if zoom is None:
        return slab
    out = scratch.array("first", stop - start, *slab.shape[1:])
    if zoom.order == 0:
        return _taken(slab, zoom.nearest(start, stop), 0, out)
    columns = slab.reshape(slab.shape[0], -1)
    np.matmul(zoom.block(start, stop), columns, out=out.reshape(stop - start, -1))
    return out


def zoom_middle_axis(slab: NDArray[Any], zoom: AxisZoom | None, scratch: Scratch) -> NDArray[Any]:
    """Returns `slab` [n, y, x] with its whole axis 1 zoomed: [n, y', x]."""
    if zoom is None:
        return slab
    out = scratch.array("middle", slab.shape[0], zoom.n_out, slab.shape[2])
    if zoom.order == 0:
        return _taken(slab, zoom.columns[:, 0], 1, out)
    for start, stop in zoom.spans():
        np.matmul(zoom.block(start, stop), slab[:, zoom.support(start, stop)], out=out[:, start:stop])
    return out


def zoom_last_axis(slab: NDArray[Any], zoom: AxisZoom | None, scratch: Scratch) -> NDArray[Any]:
    """Returns `slab` [n, y, x] with its whole axis 2 zoomed: [n, y, x']."""
    if zoom is None:
        return slab
    out = scratch.array("last", *slab.shape[:2], zoom.n_out)
    if zoom.order == 0:
        return _taken(slab, zoom.columns[:, 0], 2, out)
    rows, zoomed = slab.reshape(-1, slab.shape[2]), out.reshape(-1, zoom.n_out)
    for start, stop in zoom.spans():
        np.matmul(rows[:, zoom.support(start, stop)], zoom.block(start, stop).T, out=zoomed[:, start:stop])
    return out
