"""nnU-Net's resampling as one banded matrix an axis, applied as matrix products in slabs.

An axis-aligned spline zoom is linear and separable, so ``skimage.transform.resize(mode="edge",
anti_aliasing=False)``, on which nnU-Net's default resampling rests, is a matrix along each axis followed by a
clip to the range of its input. The cubic prefilter is written in closed form (Unser, "Splines: a perfect fit for
signal and image processing", 1999): its impulse response is √3·z^|i| with z = √3 - 2, so each row of a matrix is
a short band, and a volume needs tens of multiply-adds a voxel and axis, all of them inside BLAS.

Arrays are [channel, axis 0, axis 1, axis 2]; nothing here knows of spacing files, networks or Triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.threads import run_all
from voxtile.cores import usable_cores

Rule = Literal["scipy", "torch"]
Shape = tuple[int, int, int]
Limits = tuple[Any, Any]

SPLINE_POLE = float(np.sqrt(3.0) - 2.0)
EXACT_REACH = 28
"""Taps of the prefilter to either side at which its response, |z|^28 = 1e-16, is below float64's rounding."""
SINGLE_REACH = 15
"""The same for float32: |z|^16 = 7e-10 is a hundredth of one float32 rounding step."""
DEFAULT_MAX_BYTES = 32 * 2**20
"""Size of the intermediate slabs; measured: larger ones leave the last-level cache and gain nothing."""
MAX_SLAB_ROWS = 48
BLOCK_ROWS = {0: 32, 1: 32, 3: 64}
"""Output rows that share one dense sub-matrix: a trade between wasted zeros and small products."""


def check_order(order: int) -> int:
    """The spline order, if it is one that is implemented.

    Raises ValueError for anything but 0 (nearest), 1 (linear) and 3 (cubic).
    """
    if order not in BLOCK_ROWS:
        raise ValueError(f"expected a spline order of 0, 1 or 3, got {order!r}; nnU-Net's own plans use only these")
    return order


def sample_positions(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Coordinates [n_out], in input voxels, of the output voxels' centres (align_corners False, half-voxel offset)."""
    return np.asarray((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, np.float64)


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
    """The zoom of one axis from n_in to n_out voxels: for each output voxel its input columns and weights.

    ``rule`` "scipy" is scipy.ndimage's order 0, 1 or 3 with half-voxel offsets and replicated edges; "torch" is
    ``torch.nn.functional.interpolate`` with align_corners False: "nearest-exact" (order 0) or linear (order 1).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        order: int,
        rule: Rule = "scipy",
        *,
        dtype: Any = np.float32,
        reach: int | None = None,
    ) -> None:
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
            narrow = SINGLE_REACH if self.dtype == np.float32 else EXACT_REACH
            self.columns, self.weights = _cubic_taps(n_in, n_out, narrow if reach is None else reach)
        self._blocks: dict[tuple[int, int], NDArray[Any]] = {}

    def support(self, start: int, stop: int) -> slice:
        """The input voxels on which the output voxels start … stop-1 depend."""
        columns = self.columns[start:stop]
        return slice(int(columns.min()), int(columns.max()) + 1)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """The sub-matrix [stop - start, length of ``support(start, stop)``] in this zoom's dtype."""
        found = self._blocks.get((start, stop))
        if found is None:
            reads = self.support(start, stop)
            found = self._blocks[start, stop] = self._dense(start, stop, reads).astype(self.dtype)
        return found

    def matrix(self) -> NDArray[np.float64]:
        """The whole matrix [n_out, n_in]."""
        return self._dense(0, self.n_out, slice(0, self.n_in))

    def _dense(self, start: int, stop: int, reads: slice) -> NDArray[np.float64]:
        dense = np.zeros((stop - start, reads.stop - reads.start))
        rows = np.arange(stop - start)[:, None]
        np.add.at(dense, (rows, self.columns[start:stop] - reads.start), self.weights[start:stop])
        return dense

    def nearest(self, start: int, stop: int) -> NDArray[np.int64]:
        """For order 0: positions of the source voxels within ``support(start, stop)``."""
        found: NDArray[np.int64] = self.columns[start:stop, 0] - self.support(start, stop).start
        return found

    def spans(self) -> Iterator[tuple[int, int]]:
        """The output rows in blocks that share one sub-matrix."""
        step = BLOCK_ROWS[self.order]
        return ((start, min(start + step, self.n_out)) for start in range(0, self.n_out, step))


def zoom_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """The matrix [n_out, n_in] of ``skimage.transform.resize(mode="edge", anti_aliasing=False)`` along one axis.

    ``order`` is 0, 1 or 3. For order 3 nnU-Net's call also clips the product to the range of its input, which
    ``resample`` does and a matrix cannot. Equal to scipy's filter within 1e-13. Raises ValueError for other orders.
    """
    return AxisZoom(n_in, n_out, order, dtype=np.float64).matrix()


@lru_cache(maxsize=64)
def axis_zoom(n_in: int, n_out: int, order: int, rule: Rule, double: bool) -> AxisZoom | None:
    """The zoom of one axis, or None where it changes nothing (equal sizes)."""
    if n_in == n_out:
        return None
    return AxisZoom(n_in, n_out, order, rule, dtype=np.float64 if double else np.float32)


class Scratch:
    """Intermediate arrays that are used again for every slab: fresh memory costs more than the products in it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._buffers: dict[str, NDArray[Any]] = {}

    def array(self, name: str, *shape: int) -> NDArray[Any]:
        """An uninitialised array of this shape; the earlier one of the same name is given up."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, self.dtype)
        return buffer[:size].reshape(shape)

    def contiguous(self, name: str, source: NDArray[Any]) -> NDArray[Any]:
        """``source`` itself where it is contiguous and of this dtype, else a copy that is."""
        if source.dtype == self.dtype and source.flags.c_contiguous:
            return source
        copy = self.array(name, *source.shape)
        copy[...] = source
        return copy


def zoom_first_axis(slab: NDArray[Any], zoom: AxisZoom | None, start: int, stop: int, scratch: Scratch) -> NDArray[Any]:
    """Output rows start … stop-1 along axis 0 from ``slab`` [support, y, x], contiguous; [stop - start, y, x]."""
    if zoom is None:
        return slab
    out = scratch.array("first", stop - start, *slab.shape[1:])
    if zoom.order == 0:
        return np.take(slab, zoom.nearest(start, stop), axis=0, out=out, mode="clip")
    columns = slab.reshape(slab.shape[0], -1)
    np.matmul(zoom.block(start, stop), columns, out=out.reshape(stop - start, -1))
    return out


def zoom_middle_axis(slab: NDArray[Any], zoom: AxisZoom | None, scratch: Scratch) -> NDArray[Any]:
    """The whole axis 1 of ``slab`` [n, y, x] zoomed; [n, y', x]."""
    if zoom is None:
        return slab
    out = scratch.array("middle", slab.shape[0], zoom.n_out, slab.shape[2])
    if zoom.order == 0:
        return np.take(slab, zoom.columns[:, 0], axis=1, out=out, mode="clip")
    for start, stop in zoom.spans():
        np.matmul(zoom.block(start, stop), slab[:, zoom.support(start, stop)], out=out[:, start:stop])
    return out


def zoom_last_axis(slab: NDArray[Any], zoom: AxisZoom | None, scratch: Scratch) -> NDArray[Any]:
    """The whole axis 2 of ``slab`` [n, y, x] zoomed; [n, y, x']."""
    if zoom is None:
        return slab
    out = scratch.array("last", *slab.shape[:2], zoom.n_out)
    if zoom.order == 0:
        return np.take(slab, zoom.columns[:, 0], axis=2, out=out, mode="clip")
    rows, zoomed = slab.reshape(-1, slab.shape[2]), out.reshape(-1, zoom.n_out)
    for start, stop in zoom.spans():
        np.matmul(rows[:, zoom.support(start, stop)], zoom.block(start, stop).T, out=zoomed[:, start:stop])
    return out


def _slab_rows(shape: Sequence[int], new_shape: Sequence[int], itemsize: int, max_bytes: int) -> int:
    plane = shape[1] * shape[2] + new_shape[1] * shape[2] + new_shape[1] * new_shape[2]
    return int(np.clip(max_bytes // (plane * itemsize), 1, MAX_SLAB_ROWS))


def _spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, total)) for start in range(0, total, step))


def _reads(zoom: AxisZoom | None, start: int, stop: int) -> slice:
    return slice(start, stop) if zoom is None else zoom.support(start, stop)


@dataclass(frozen=True)
class _Part:
    """A run of output rows of one channel: views with the axis that is apart, if any, brought to the front.

    limits: the channel's smallest and largest value, where the result is clipped to them.
    """

    volume: NDArray[Any]
    out: NDArray[Any]
    start: int
    stop: int
    limits: Limits | None

    def slabs(self, rows: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + rows, self.stop)) for start in range(self.start, self.stop, rows))


def _zoom_volume(part: _Part, zooms: Sequence[AxisZoom | None], rows: int, scratch: Scratch) -> None:
    volume, out = part.volume, part.out
    for start, stop in part.slabs(rows):
        slab = scratch.contiguous("slab", volume[_reads(zooms[0], start, stop)])
        slab = zoom_first_axis(slab, zooms[0], start, stop, scratch)
        slab = zoom_last_axis(zoom_middle_axis(slab, zooms[1], scratch), zooms[2], scratch)
        if part.limits:
            np.clip(slab, *part.limits, out=out[start:stop], casting="same_kind")
        else:
            out[start:stop] = slab


def _zoom_planes(
    volume: NDArray[Any], zooms: Sequence[AxisZoom | None], clip: bool, out: NDArray[Any], scratch: Scratch
) -> None:
    planes = scratch.contiguous("slab", volume)
    zoomed = zoom_last_axis(zoom_middle_axis(planes, zooms[1], scratch), zooms[2], scratch)
    if clip:
        np.clip(zoomed, planes.min((1, 2), keepdims=True), planes.max((1, 2), keepdims=True), out=out)
    else:
        out[...] = zoomed


def _zoom_by_plane(part: _Part, zooms: Sequence[AxisZoom | None], clip: bool, rows: int, scratch: Scratch) -> None:
    """Axis 0 apart: every plane is zoomed and clipped to its own range, then axis 0 follows without a clip."""
    volume, out, known_from = part.volume, part.out, 0
    ready = scratch.array("ready", 0, *out.shape[1:])
    for start, stop in part.slabs(rows):
        reads = _reads(zooms[0], start, stop)
        kept = ready[max(reads.start - known_from, 0) :].copy()
        ready = scratch.array("ready", reads.stop - reads.start, *out.shape[1:])
        ready[: len(kept)] = kept
        for first, last in _spans(reads.stop - reads.start - len(kept), rows):
            planes = slice(reads.start + len(kept) + first, reads.start + len(kept) + last)
            _zoom_planes(volume[planes], zooms, clip, ready[len(kept) + first : len(kept) + last], scratch)
        known_from = reads.start
        out[start:stop] = zoom_first_axis(ready, zooms[0], start, stop, scratch)


def _shares(total: int, count: int) -> Iterator[tuple[int, int]]:
    """`total` rows in at most `count` runs of nearly equal length."""
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    return ((int(first), int(last)) for first, last in pairwise(edges))


def _limits(volume: NDArray[Any], threads: int) -> Limits:
    """The smallest and the largest value of ``volume``."""

    def of(rows: tuple[int, int]) -> Limits:
        share = volume[slice(*rows)]
        return share.min(), share.max()

    lowest, highest = zip(*run_all(of, _shares(len(volume), threads), threads), strict=True)
    return np.min(lowest), np.max(highest)


def _check(data: NDArray[Any], new_shape: Sequence[int], separate_z_axis: int | None) -> Shape:
    if data.ndim != 4:
        raise ValueError(f"expected an array [channel, z, y, x], got one of shape {data.shape}")
    if len(new_shape) != 3:
        raise ValueError(f"expected a new shape of three axes, got {tuple(new_shape)}")
    if separate_z_axis not in (None, 0, 1, 2):
        raise ValueError(f"expected separate_z_axis to be 0, 1, 2 or None, got {separate_z_axis!r}")
    return int(new_shape[0]), int(new_shape[1]), int(new_shape[2])


@dataclass(frozen=True)
class _Job:
    """What happens to each channel: the zooms with the axis that is apart, if any, in front, and the slabs' size."""

    zooms: tuple[AxisZoom | None, ...]
    front: int
    by_plane: bool
    clip: bool
    rows: int
    dtype: Any

    def parts(self, data: NDArray[Any], out: NDArray[Any], count: int) -> Iterator[_Part]:
        for volume, target in zip(data, out, strict=True):
            source, goal = np.moveaxis(volume, self.front, 0), np.moveaxis(target, self.front, 0)
            limits = _limits(volume, count) if self.clip and not self.by_plane else None
            yield from (_Part(source, goal, a, b, limits) for a, b in _shares(goal.shape[0], count))

    def run(self, part: _Part) -> None:
        if self.by_plane:
            _zoom_by_plane(part, self.zooms, self.clip, self.rows, Scratch(self.dtype))
        else:
            _zoom_volume(part, self.zooms, self.rows, Scratch(self.dtype))


def _job(
    shape: Shape,
    new_shape: Shape,
    order: int,
    separate: int | None,
    order_z: int,
    rule: Rule,
    dtype: Any,
    max_bytes: int,
) -> _Job:
    front = 0 if separate is None else separate
    axes = [front, *(axis for axis in range(3) if axis != front)]
    orders = [order_z if axis == separate else order for axis in axes]
    double = np.dtype(dtype) == np.float64
    zooms = tuple(
        axis_zoom(shape[axis], new_shape[axis], check_order(o), rule, double)
        for axis, o in zip(axes, orders, strict=True)
    )
    rows = _slab_rows([shape[a] for a in axes], [new_shape[a] for a in axes], np.dtype(dtype).itemsize, max_bytes)
    return _Job(zooms, front, separate is not None, order > 1, rows, dtype)


def resample(
    data: NDArray[Any],
    new_shape: Sequence[int],
    *,
    order: int = 3,
    separate_z_axis: int | None = None,
    order_z: int = 0,
    rule: Rule = "scipy",
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> NDArray[Any]:
    """Resample every channel of ``data`` [channel, z, y, x] to ``new_shape`` (z, y, x); same dtype.

    Equal to nnU-Net's ``resample_data_or_seg(is_seg=False)``. Without ``separate_z_axis`` all axes use ``order`` and
    each channel is clipped to its range; with it, every plane across that axis is resampled by ``order`` and
    clipped to its own range, then the axis itself by ``order_z`` without a clip. float64 is computed in float64,
    everything else in float32. The work beyond in- and output stays near ``max_bytes``, shared by ``threads``
    threads (None: the usable cores). Where the shape does not change, ``data`` itself is returned, as nnU-Net does.

    Raises ValueError for an order other than 0, 1, 3, or shapes that are not three axes.
    """
    target = _check(data, new_shape, separate_z_axis)
    shape: Shape = data.shape[1], data.shape[2], data.shape[3]
    if shape == target:
        return data
    workers = threads or usable_cores()
    dtype = np.float64 if data.dtype == np.float64 else np.float32
    job = _job(shape, target, order, separate_z_axis, order_z, rule, dtype, max_bytes // workers)
    out = np.empty((data.shape[0], *target), data.dtype)
    run_all(job.run, job.parts(data, out, workers), workers)
    return out
