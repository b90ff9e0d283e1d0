"""nnU-Net v2's preprocessing of one scan: transpose, crop to non-zero, normalise, resample.

Follows `DefaultPreprocessor.run_case_npy` of nnunetv2 2.8.1. The order of axes is SimpleITK's: arrays are
[channel, z, y, x] (a nibabel array transposed), spacings (z, y, x) in millimetres, and nothing is reoriented. Knows
nothing of files or cards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.grid_limit import GridLimit
from voxtile.chains.nnunet.normalising import needs_layout, normalise
from voxtile.chains.nnunet.plan import NnunetPlan, Spacing
from voxtile.chains.nnunet.resampling import DEFAULT_MAX_BYTES
from voxtile.errors import InputError, ModelError

Triple = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
UNNAMED = GridLimit("the scan")
OUTSIDE = -1
"""nnU-Net's label, in a previous stage's segmentation, for voxels outside the non-zero region."""


@dataclass(frozen=True)
class GridProperties:
    """What the way back to the scan needs; everything but `original_shape` is in the plan's axes.

    Attributes:
        original_shape: voxels of the scan along z, y, x.
        shape_before_cropping: voxels of the scan.
        bbox: the crop to the non-zero region, half-open.
        shape_after_cropping: voxels of the crop.
        shape_after_resampling: voxels of the network's grid.
        spacing: millimetres between voxels of the scan.
        target_spacing: millimetres between voxels of the network's grid.
    """

    original_shape: Triple
    shape_before_cropping: Triple
    bbox: Box
    shape_after_cropping: Triple
    shape_after_resampling: Triple
    spacing: Spacing
    target_spacing: Spacing


@dataclass(frozen=True)
class Preprocessed:
    """A scan on the network's grid.

    Attributes:
        data: [channel, *plan's axes] float32.
        properties: the way back to the scan.
    """

    data: NDArray[np.float32] = field(repr=False)
    properties: GridProperties


def compute_new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Triple:
    """Returns the shape of a grid of the same extent with another spacing: round(spacing/target·size), half to even."""
    z, y, x = (round(old / new * size) for old, new, size in zip(spacing, target, shape, strict=True))
    return z, y, x


def nonzero_mask(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns [z, y, x] whether any channel of `data` [channel, z, y, x] is not zero."""
    mask: NDArray[np.bool_] = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    return mask


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns `scipy.ndimage.binary_fill_holes(mask)`, by connected components, which is faster on a volume.

    A hole is background that no path of face neighbours joins to the outside of the array. A mask without background
    is returned itself.
    """
    from scipy.ndimage import label

    if mask.all():
        return mask
    background = np.ones([size + 2 for size in mask.shape], np.bool_)
    inner = tuple(slice(1, -1) for _ in mask.shape)
    np.logical_not(mask, out=background[inner])
    outside, _ = label(background)
    filled: NDArray[np.bool_] = outside[inner] != outside.flat[0]
    return filled


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Returns the half-open box of the true voxels, or the whole array if there are none; holes do not change it."""
    spans = []
    for axis, size in enumerate(mask.shape):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append((int(used[0]), int(used[-1]) + 1) if used.size else (0, size))
    return spans[0], spans[1], spans[2]


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """Returns `box` as an index."""
    z, y, x = (slice(*span) for span in box)
    return z, y, x


def _check_scan(data: NDArray[Any], spacing: Sequence[float], plan: NnunetPlan) -> None:
    if data.ndim != 4 or 0 in data.shape:
        raise InputError(f"expected a scan of shape [channel, z, y, x], got {data.shape}")
    if data.shape[0] != plan.channels:
        raise InputError(f"expected {plan.channels} images of a scan, one for each channel, got {data.shape[0]}")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"expected three positive spacings (z, y, x) in mm, got {tuple(spacing)}")


def _normalised(
    data: NDArray[Any], crop: tuple[slice, slice, slice], plan: NnunetPlan, mask: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Every channel transposed, cropped and normalised; `mask` lies on the crop."""
    shape = [s.stop - s.start for s in crop]
    out = np.empty((data.shape[0], *shape), np.float32)
    for channel, scheme in enumerate(plan.normalization_schemes):
        where = mask if plan.use_mask_for_norm[channel] else None
        image = data[channel]
        if needs_layout(scheme, where):
            image = image.astype(np.float32, order="C", copy=False)
        image = image.transpose(plan.transpose_forward)[crop]
        normalise(image, out[channel], scheme, plan.intensity_properties(channel), where)
    return out


def _previous_stage(
    seg: NDArray[Any], crop: tuple[slice, slice, slice], plan: NnunetPlan, inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    cropped = np.array(seg.transpose(plan.transpose_forward)[crop], np.float32, order="C")
    cropped[(cropped == 0) & ~inside] = OUTSIDE
    return cropped[None]


def _masked(plan: NnunetPlan) -> bool:
    pairs = zip(plan.normalization_schemes, plan.use_mask_for_norm, strict=True)
    return any(scheme == "ZScoreNormalization" and used for scheme, used in pairs)


def preprocess(
    data: NDArray[Any],
    spacing_zyx: Sequence[float],
    plan: NnunetPlan,
    *,
    previous_stage_seg: NDArray[Any] | None = None,
    limit: GridLimit = UNNAMED,
) -> Preprocessed:
    """Brings a scan to the network's grid.

    Args:
        data: [channel, z, y, x].
        spacing_zyx: millimetres along z, y, x.
        plan: the model's plan.
        previous_stage_seg: [z, y, x] the labels of a cascade's first stage on the scan's own grid; they become one
            channel for each of the plan's `foreground_labels`.
        limit: the memory that it may take, and the scan's name.

    Raises:
        InputError: a wrong number of channels, a spacing that is not positive, labels of another shape, or a network's
            grid without voxels.
        ModelError: the plan names no labels for a previous stage.
        MemoryLimitError: the network's grid needs too much memory.
    """
    _check_scan(data, spacing_zyx, plan)
    spacing = plan.forward([float(s) for s in spacing_zyx])
    occupied = nonzero_mask(data).transpose(plan.transpose_forward)
    box = bounding_box(occupied)
    crop, shape, target = box_slices(box), _sizes(box), plan.target_spacing(spacing)
    new_shape = compute_new_shape(shape, spacing, target)
    labels = len(plan.foreground_labels) if previous_stage_seg is not None else 0
    limit.check(shape, spacing, new_shape, preprocess_bytes(occupied.size, shape, new_shape, len(data), labels))
    inside = fill_holes(occupied[crop]) if _masked(plan) or previous_stage_seg is not None else None
    seg = None
    if previous_stage_seg is not None and inside is not None:
        seg = _previous_stage(_check_seg(previous_stage_seg, data, plan), crop, plan, inside)
        inside = seg[0] >= 0
    ready = plan.data_resampling.apply(_normalised(data, crop, plan, inside), new_shape, spacing, target)
    if seg is not None:
        ready = _with_labels(ready, plan.seg_resampling.apply_to_labels(seg, new_shape, spacing, target), plan)
    after = _triple(ready.shape[1:])
    grid = GridProperties(_triple(data.shape[1:]), _triple(occupied.shape), box, shape, after, spacing, target)
    return Preprocessed(ready, grid)


def preprocess_bytes(scan: int, crop: Triple, grid: Triple, channels: int, labels: int) -> int:
    """Returns the bytes that `preprocess` takes at its peak, beyond the scan itself.

    Args:
        scan: voxels of the scan.
        crop: voxels of the crop along each axis.
        grid: voxels of the network's grid along each axis.
        channels: the number of images.
        labels: the number of label channels of a cascade; 0 without a previous stage.
    """
    inner, outer = math.prod(crop), math.prod(grid)
    filling = 6 * inner  # components as int32, the mask and its padded complement
    normalising = 4 * (channels + 1) * inner
    working = 16 * math.prod(map(max, crop, grid))  # two arrays of float64, resampled along some axes
    resampling = 4 * channels * (inner + outer) + (0 if crop == grid else min(DEFAULT_MAX_BYTES, working))
    joining = 4 * inner + 4 * (1 + 2 * channels + labels) * outer if labels else 0
    return 2 * scan + inner + max(filling, normalising, resampling, joining)


def _triple(shape: Sequence[int]) -> Triple:
    z, y, x = shape
    return z, y, x


def _sizes(box: Box) -> Triple:
    z, y, x = (stop - start for start, stop in box)
    return z, y, x


def _check_seg(seg: NDArray[Any], data: NDArray[Any], plan: NnunetPlan) -> NDArray[Any]:
    if seg.shape != data.shape[1:]:
        raise InputError(
            f"expected the previous stage's segmentation on the scan's own grid {data.shape[1:]}, found {seg.shape}"
        )
    if not plan.foreground_labels:
        raise ModelError("a cascade's second stage needs foreground_labels in its plan; import the model again")
    return seg


def _with_labels(data: NDArray[np.float32], seg: NDArray[Any], plan: NnunetPlan) -> NDArray[np.float32]:
    both = np.empty((len(data) + len(plan.foreground_labels), *data.shape[1:]), np.float32)
    both[: len(data)] = data
    for label, channel in zip(plan.foreground_labels, both[len(data) :], strict=True):
        np.equal(seg[0], label, out=channel)
    return both
