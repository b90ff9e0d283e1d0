"""Resamples label maps: the segmentation that a cascade's second stage gets from its first.

Arrays are [channel, z, y, x]. Each function names the function of nnU-Net that it equals. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.resampling import resample

Score = Callable[[NDArray[Any]], NDArray[Any]]
TORCH_SCALE = 1000.0
"""nnU-Net multiplies torch's scores by this before it rounds them to half precision."""


def _in_plane_shape(shape: Sequence[int], new_shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
    return tuple(old if i == axis else new for i, (old, new) in enumerate(zip(shape, new_shape, strict=True)))


def _argmax_labels(
    labels: NDArray[Any], seg: NDArray[Any], score: Score, nearest: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The label with the highest score; a tie goes to the nearest voxel's label if that is tied, else to the lowest."""
    best = score(seg == labels[0])
    winner = np.full(best.shape, labels[0], seg.dtype)
    of_nearest = best.copy()
    for label in labels[1:]:
        here = score(seg == label)
        winner[here > best] = label
        np.maximum(best, here, out=best)
        if nearest is not None:
            np.copyto(of_nearest, here, where=nearest == label)
    return winner if nearest is None else np.where(of_nearest == best, nearest, winner)


def _over_half(labels: NDArray[Any], seg: NDArray[Any], new_shape: Sequence[int], score: Score) -> NDArray[Any]:
    """In ascending order, each label where its score exceeds one half; 0 where none does."""
    out = np.zeros((len(seg), *new_shape), seg.dtype)
    for label in labels:
        out[score(seg == label) > 0.5] = label
    return out


def resample_labels(
    seg: NDArray[Any],
    new_shape: Sequence[int],
    *,
    order: int,
    separate_z_axis: int | None,
    order_z: int,
) -> NDArray[Any]:
    """Resamples label maps as `resample_data_or_seg(is_seg=True)` with batchgenerators 0.25.5 does.

    In each plane (or in the volume) the label with the highest resampled indicator wins. Along the separate axis then
    follows the nearest plane (`order_z` 0), or every label whose indicator exceeds one half. Scores are computed in
    float64, since exact ties decide voxels.

    Args:
        seg: [channel, z, y, x].
        new_shape: voxels along z, y, x.
        order: spline order of the indicators.
        separate_z_axis: the axis that is resampled separately, or None.
        order_z: spline order along that axis.

    Returns:
        Label maps of the same type.
    """
    if seg.shape[1:] == tuple(new_shape):
        return seg
    in_plane = _in_plane_shape(seg.shape[1:], new_shape, separate_z_axis)
    flat = _resample_in_plane(seg, in_plane, order, separate_z_axis)
    if flat.shape[1:] == tuple(new_shape):
        return flat
    if order_z == 0:
        return resample(flat, new_shape, order=0)

    def score(mask: NDArray[Any]) -> NDArray[Any]:
        return resample(mask.astype(np.float64), new_shape, order=0, separate_z_axis=separate_z_axis, order_z=order_z)

    return _over_half(np.unique(flat), flat, new_shape, score)


def _resample_in_plane(seg: NDArray[Any], shape: tuple[int, ...], order: int, axis: int | None) -> NDArray[Any]:
    labels = np.unique(seg)

    def score(mask: NDArray[Any]) -> NDArray[Any]:
        return resample(mask.astype(np.float64), shape, order=order, separate_z_axis=axis)

    return np.concatenate([_argmax_labels(labels, one, score, resample(one, shape, order=0)) for one in seg[:, None]])


def resample_labels_torch(
    seg: NDArray[Any],
    new_shape: Sequence[int],
    *,
    order: int,
    separate_z_axis: int | None,
    order_z: int,
    memory_efficient: bool,
) -> NDArray[Any]:
    """Resamples label maps as `resample_torch_fornnunet(is_seg=True)` does.

    The label with the highest score wins, after scores are rounded to half precision.

    Args:
        seg: [channel, z, y, x].
        new_shape: voxels along z, y, x.
        order: order of the indicators.
        separate_z_axis: the axis that is resampled separately, or None.
        order_z: order along the separate axis.
        memory_efficient: instead, in ascending order, each label where its score exceeds one half.
    """
    if separate_z_axis is not None:
        in_plane = _in_plane_shape(seg.shape[1:], new_shape, separate_z_axis)
        flat = _torchs(seg, in_plane, order, memory_efficient)
        return _torchs(flat, new_shape, order_z, memory_efficient)
    return _torchs(seg, new_shape, order, memory_efficient)


def _torchs(seg: NDArray[Any], new_shape: Sequence[int], order: int, memory_efficient: bool) -> NDArray[Any]:
    if seg.shape[1:] == tuple(new_shape):
        return seg

    def score(mask: NDArray[Any]) -> NDArray[Any]:
        scores = resample(mask.astype(np.float32), new_shape, order=order, rule="torch")
        return scores if memory_efficient else (scores * np.float32(TORCH_SCALE)).astype(np.float16)

    labels = np.unique(seg)
    return _over_half(labels, seg, new_shape, score) if memory_efficient else _argmax_labels(labels, seg, score)
