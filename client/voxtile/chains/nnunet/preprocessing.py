"""nnU-Net v2's preprocessing of one case: transpose, crop to non-zero, normalise, resample.

Follows ``DefaultPreprocessor.run_case_npy`` of nnunetv2 2.8.1. Axis order is SimpleITK's: arrays are
[channel, z, y, x] (a nibabel array transposed), spacings (z, y, x) in mm, and nothing is reoriented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.normalising import check_scheme, needs_layout, normalise
from voxtile.chains.nnunet.resampling_rules import ResamplingRule
from voxtile.errors import InputError, ModelError

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
OUTSIDE = -1
"""nnU-Net's label for what lies outside the non-zero region of a previous stage's segmentation."""


@dataclass(frozen=True)
class NnunetPlan:
    """What nnU-Net's plan says about one configuration; axes and spacings after ``transpose_forward``."""

    transpose_forward: Triple
    transpose_backward: Triple
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    foreground_intensity_properties_per_channel: Mapping[str, Mapping[str, float]]
    data_resampling: ResamplingRule
    seg_resampling: ResamplingRule
    probabilities_resampling: ResamplingRule
    foreground_labels: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> NnunetPlan:
        """From the keys of nnU-Net's plans.json, its configuration merged in (plain JSON types only).

        Needed: transpose_forward, transpose_backward, spacing, patch_size, normalization_schemes, use_mask_for_norm,
        foreground_intensity_properties_per_channel, resampling_fn_{data,seg,probabilities} and their _kwargs. A
        cascade's second stage also needs foreground_labels. Raises ModelError for what is missing or unknown.
        """
        schemes = tuple(_need(plan, "normalization_schemes"))
        properties = _need(plan, "foreground_intensity_properties_per_channel")
        for channel, scheme in enumerate(schemes):
            check_scheme(scheme, properties.get(str(channel), {}), channel)
        return cls(
            _axes(plan, "transpose_forward"),
            _axes(plan, "transpose_backward"),
            _spatial(plan, "spacing", float),
            _spatial(plan, "patch_size", int),
            schemes,
            _masks(plan, len(schemes)),
            properties,
            _rule(plan, "data"),
            _rule(plan, "seg", is_seg=True),
            _rule(plan, "probabilities"),
            tuple(int(label) for label in plan.get("foreground_labels", ())),
        )

    @property
    def channels(self) -> int:
        """How many images one case has."""
        return len(self.normalization_schemes)

    def forward(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """``values`` (one an axis) in the plan's axis order."""
        first, second, third = (values[axis] for axis in self.transpose_forward)
        return first, second, third

    def target_spacing(self, spacing: Spacing) -> Spacing:
        """The plan's spacing; a 2D plan leaves the spacing between slices (axis 0 of ``spacing``) as it is."""
        full = self.spacing if len(self.spacing) == 3 else (spacing[0], *self.spacing)
        return full[0], full[1], full[2]


@dataclass(frozen=True)
class GridProperties:
    """What undoing the preprocessing needs; all but ``original_shape`` after ``transpose_forward``."""

    original_shape: Triple
    shape_before_cropping: Triple
    bbox: Box
    shape_after_cropping: Triple
    shape_after_resampling: Triple
    spacing: Spacing
    target_spacing: Spacing


@dataclass(frozen=True)
class Preprocessed:
    """A case ready for the network: ``data`` float32 [channel, *plan's axes] and how to get back."""

    data: NDArray[np.float32] = field(repr=False)
    properties: GridProperties


def _need(plan: Mapping[str, Any], key: str) -> Any:
    if key not in plan:
        raise ModelError(f"the model's nnU-Net plan has no {key!r}; import the model again with voxtile-build nnunet")
    return plan[key]


def _axes(plan: Mapping[str, Any], key: str) -> Triple:
    axes = tuple(int(axis) for axis in _need(plan, key))
    if sorted(axes) != [0, 1, 2]:
        raise ModelError(f"{key}: expected an order of the axes 0, 1, 2, found {list(axes)}")
    return axes[0], axes[1], axes[2]


def _spatial(plan: Mapping[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    values = tuple(kind(value) for value in _need(plan, key))
    if len(values) not in (2, 3) or min(values) <= 0:
        raise ModelError(f"{key}: expected two or three positive numbers, found {list(values)}")
    return values


def _masks(plan: Mapping[str, Any], channels: int) -> tuple[bool, ...]:
    masks = tuple(bool(value) for value in _need(plan, "use_mask_for_norm"))
    if len(masks) != channels:
        raise ModelError(f"use_mask_for_norm: expected {channels} entries, one a channel, found {len(masks)}")
    return masks


def _rule(plan: Mapping[str, Any], what: str, *, is_seg: bool = False) -> ResamplingRule:
    key = f"resampling_fn_{what}"
    return ResamplingRule.from_plan(_need(plan, key), plan.get(f"{key}_kwargs", {}), key, is_seg=is_seg)


def compute_new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Triple:
    """The grid of the same extent at another spacing: round(spacing/target·size), half to even."""
    z, y, x = (round(old / new * size) for old, new, size in zip(spacing, target, shape, strict=True))
    return z, y, x


def nonzero_mask(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Where any channel of ``data`` [channel, z, y, x] is not zero; [z, y, x]."""
    mask: NDArray[np.bool_] = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    return mask


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``scipy.ndimage.binary_fill_holes`` by connected components, which is faster on a volume.

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
    """The half-open box of the true voxels; of an empty mask the whole array. Filling holes does not change it."""
    spans = []
    for axis, size in enumerate(mask.shape):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append((int(used[0]), int(used[-1]) + 1) if used.size else (0, size))
    return spans[0], spans[1], spans[2]


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """``box`` as an index."""
    z, y, x = (slice(*span) for span in box)
    return z, y, x


def _check_case(data: NDArray[Any], spacing: Sequence[float], plan: NnunetPlan) -> None:
    if data.ndim != 4 or 0 in data.shape:
        raise InputError(f"expected a case of shape [channel, z, y, x], got {data.shape}")
    if data.shape[0] != plan.channels:
        raise InputError(f"the model takes {plan.channels} images a case, one a channel, and was given {data.shape[0]}")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"expected three positive spacings (z, y, x) in mm, got {tuple(spacing)}")


def _normalised(
    data: NDArray[Any], crop: tuple[slice, slice, slice], plan: NnunetPlan, mask: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Every channel transposed, cropped and normalised; ``mask`` [z, y, x] lies on the crop."""
    shape = [s.stop - s.start for s in crop]
    out = np.empty((data.shape[0], *shape), np.float32)
    for channel, scheme in enumerate(plan.normalization_schemes):
        where = mask if plan.use_mask_for_norm[channel] else None
        image = data[channel]
        if needs_layout(scheme, where):
            image = image.astype(np.float32, order="C", copy=False)
        image = image.transpose(plan.transpose_forward)[crop]
        properties = plan.foreground_intensity_properties_per_channel.get(str(channel), {})
        normalise(image, out[channel], scheme, properties, where)
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
) -> Preprocessed:
    """Bring a case ``data`` [channel, z, y, x] of spacing ``spacing_zyx`` (mm) to the network's grid.

    ``previous_stage_seg`` [z, y, x] is the label map that a cascade's first stage gave on the case's own grid; it is
    added as one channel for each of the plan's ``foreground_labels``. The result is float32. Raises InputError for
    a wrong number of channels, spacings that are not positive, a segmentation of another shape.
    """
    _check_case(data, spacing_zyx, plan)
    spacing = plan.forward([float(s) for s in spacing_zyx])
    occupied = nonzero_mask(data).transpose(plan.transpose_forward)
    box = bounding_box(occupied)
    crop, shape, target = box_slices(box), _sizes(box), plan.target_spacing(spacing)
    new_shape = compute_new_shape(shape, spacing, target)
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


def _triple(shape: Sequence[int]) -> Triple:
    z, y, x = shape
    return z, y, x


def _sizes(box: Box) -> Triple:
    z, y, x = (stop - start for start, stop in box)
    return z, y, x


def _check_seg(seg: NDArray[Any], data: NDArray[Any], plan: NnunetPlan) -> NDArray[Any]:
    if seg.shape != data.shape[1:]:
        raise InputError(
            f"the previous stage's segmentation has shape {seg.shape}, the scan {data.shape[1:]}; both must lie "
            "on the scan's own grid"
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
