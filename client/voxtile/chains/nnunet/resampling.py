"""nnU-Net's resampling of scans, by a matrix for each axis, in slabs that several threads share.

Equal to nnU-Net's functions within float32's rounding (see `axis_zoom`). Arrays are [channel, axis 0, axis 1, axis 2].
Knows nothing of spacings, plans, networks or servers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.axis_zoom import (
    AxisZoom,
    Rule,
    Scratch,
    axis_zoom,
    check_order,
    zoom_first_axis,
    zoom_last_axis,
    zoom_middle_axis,
)
from voxtile.chains.nnunet.threads import run_all
from voxtile.machine.cores import usable_cores

Shape = tuple[int, int, int]
Limits = tuple[Any, Any]

DEFAULT_MAX_BYTES = 32 * 2**20
"""Size of the intermediate slabs. Larger ones leave the last-level cache and gain nothing (measured)."""
MAX_SLAB_ROWS = 48


def _slab_rows(shape: Sequence[int], new_shape: Sequence[int], itemsize: int, max_bytes: int) -> int:
    plane = shape[1] * shape[2] + new_shape[1] * shape[2] + new_shape[1] * new_shape[2]
    return int(np.clip(max_bytes // (plane * itemsize), 1, MAX_SLAB_ROWS))


def _spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, total)) for start in range(0, total, step))


def _reads(zoom: AxisZoom | None, start: int, stop: int) -> slice:
    return slice(start, stop) if zoom is None else zoom.support(start, stop)


@dataclass(frozen=True)
class _Part:
    """Some output rows of one channel. The axis that is resampled separately, if any, comes first in all arrays.

    Attributes:
        volume: the channel of the input.
        out: the channel of the output.
        start: the first output row.
        stop: one past the last.
        limits: the channel's smallest and largest value, where the result is clipped to them.
    """

    volume: NDArray[Any]
    out: NDArray[Any]
    start: int
    stop: int
    limits: Limits | None

    def slabs(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yields its output rows in slabs of `rows`."""
        return ((start, min(start + rows, self.stop)) for start in range(self.start, self.stop, rows))


def _zoom_volume(part: _Part, zooms: Sequence[AxisZoom | None], rows: int, scratch: Scratch) -> None:
    volume, out = part.volume, part.out
    for start, stop in part.slabs(rows):
        slab = scratch.contiguous("slab", volume[_reads(zooms[0], start, stop)])
        slab = zoom_first_axis(slab, zooms[0], start, stop, scratch)
        slab = zoom_last_axis(zoom_middle_axis(slab, zooms[1], scratch), zooms[2], scratch)
        if part.limits:
            np.clip(slab, *part.limits, out=out[start:stop])
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
    """Zooms every plane and clips it to its own range; then zooms axis 0, the separate one, without a clip."""
    volume, out, known_from = part.volume, part.out, 0
    ready = scratch.array("ready", 0, *out.shape[1:])
    for start, stop in part.slabs(rows):
        reads = _reads(zooms[0], start, stop)
        kept = ready[reads.start - known_from :].copy()
        ready = scratch.array("ready", reads.stop - reads.start, *out.shape[1:])
        ready[: len(kept)] = kept
        for first, last in _spans(reads.stop - reads.start - len(kept), rows):
            planes = slice(reads.start + len(kept) + first, reads.start + len(kept) + last)
            _zoom_planes(volume[planes], zooms, clip, ready[len(kept) + first : len(kept) + last], scratch)
        known_from = reads.start
        out[start:stop] = zoom_first_axis(ready, zooms[0], start, stop, scratch)


def _shares(total: int, count: int) -> Iterator[tuple[int, int]]:
    """`total` rows in at most `count` runs of nearly equal length."""
    edges = np.linspace(0, total, min(count, total) + 1)
    return ((int(first), int(last)) for first, last in pairwise(edges))


def _limits(volume: NDArray[Any], threads: int) -> Limits:
    """The smallest and the largest value of `volume`."""

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
    """What happens to each channel.

    Attributes:
        zooms: for each axis, the separate one first, its zoom.
        front: the axis that comes first in the arrays of a part.
        by_plane: whether axis `front` is resampled separately.
        clip: whether results are clipped to the range of the input.
        rows: output rows of a slab.
        dtype: what is computed in.
    """

    zooms: tuple[AxisZoom | None, ...]
    front: int
    by_plane: bool
    clip: bool
    rows: int
    dtype: Any

    def parts(self, data: NDArray[Any], out: NDArray[Any], count: int) -> Iterator[_Part]:
        """Yields the work on `out`, each channel in at most `count` parts."""
        for volume, target in zip(data, out, strict=True):
            source, goal = np.moveaxis(volume, self.front, 0), np.moveaxis(target, self.front, 0)
            limits = _limits(volume, count) if self.clip and not self.by_plane else None
            yield from (_Part(source, goal, a, b, limits) for a, b in _shares(goal.shape[0], count))

    def run(self, part: _Part) -> None:
        """Does one part of the work."""
        if self.by_plane:
            _zoom_by_plane(part, self.zooms, self.clip, self.rows, Scratch(self.dtype))
        else:
            _zoom_volume(part, self.zooms, self.rows, Scratch(self.dtype))


def _job(
    shape: Shape,
    new_shape: Shape,
    *,
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
    """Resamples every channel as nnU-Net's `resample_data_or_seg(is_seg=False)` does.

    Without a separate axis, all axes use `order`, and each channel is clipped to its range. With one, every plane
    across it is resampled by `order` and clipped to its own range; then the axis itself is resampled by `order_z`,
    without a clip. float64 is computed in float64, everything else in float32.

    Args:
        data: [channel, z, y, x].
        new_shape: voxels along z, y, x.
        order: spline order: 0, 1 or 3.
        separate_z_axis: the axis that is resampled separately, or None.
        order_z: spline order along that axis.
        rule: whose positions and weights are used (see `AxisZoom`).
        max_bytes: about how much the work takes beyond input and output.
        threads: threads that share the work; by default the usable cores.

    Returns:
        [channel, *new_shape] of the same type; `data` itself where the shape does not change, as in nnU-Net.

    Raises:
        ValueError: another order, or a shape that has not three axes.
    """
    target = _check(data, new_shape, separate_z_axis)
    shape: Shape = data.shape[1], data.shape[2], data.shape[3]
    if shape == target:
        return data
    workers = threads or usable_cores()
    dtype = np.float64 if data.dtype == np.float64 else np.float32
    job = _job(
        shape,
        target,
        order=order,
        separate=separate_z_axis,
        order_z=order_z,
        rule=rule,
        dtype=dtype,
        max_bytes=max_bytes // workers,
    )
    out = np.empty((data.shape[0], *target), data.dtype)
    run_all(job.run, job.parts(data, out, workers), workers)
    return out
