"""Makes a patch of a scan: as a client would send it, or as another scan would look.

Takes scans of any modality in their stored unit, before normalisation, and needs no labels. Knows no teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxtile.tensor_types import NUMPY_TYPES
from voxtile_build.arrays import Array
from voxtile_build.evaluation.samples import Scan, intensity_statistics
from voxtile_build.slimming.pool.geometry import Cut, covered, cut, draw_matrix, sample
from voxtile_build.slimming.pool.intensities import ABSOLUTE, RELATIVE, Strength, Tone, degrade, draw_tone
from voxtile_build.slimming.pool.places import draw_start
from voxtile_build.slimming.pool.survey import Channel, Survey
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec

PLAIN = 0.25
"""Share of the patches that are not augmented: voxel by voxel what a client cuts out."""

EMPTIED = 0.08
"""Share of the augmented patches in which only a slab at one side is left of the body: the windows around it look like
that in a scan with a large field of view."""

SLAB = 0.25
"""Of a side, how thick that slab is at most."""

SHIFT, STRETCH = 0.2, 0.15
"""How far the statistics of a whole scan may be off: in its deviations, and on a logarithmic scale. A patch shows a
scan of another field of view so."""


@dataclass(frozen=True)
class Patch:
    """A patch as a client sends it.

    Attributes:
        roi: [channel, *roi] in the input's data type, padding marked.
        statistics: [channel, 2] float32 of its scan.
    """

    roi: Array
    statistics: Array


def make_patch(rng: np.random.Generator, scan: Scan, found: Survey, spec: Spec) -> Patch:
    """A random patch.

    Args:
        rng: draws everything.
        scan: prepared.
        found: what the scan's survey found.
        spec: the model.
    """
    body = found.body[rng.integers(len(found.body))]
    volume, body = _plane(rng, scan.volume, body, spec)
    if rng.random() < PLAIN:
        start = draw_start(rng, volume.shape[1:], spec.tiling.roi_size, body, outside=False)
        whole = cut(volume, start, spec.tiling.roi_size, spec.tiling.padding_mode)
        return Patch(_sent(whole.values, whole.inside, spec), scan.statistics)
    return _augmented(rng, volume, body, scan, found, spec)


def _plane(rng: np.random.Generator, volume: Array, body: Array, spec: Spec) -> tuple[Array, Array]:
    """For a 2D network a slice [channel, *plane], half of them through the body's voxel, and the voxel in it."""
    axis = spec.tiling.slice_axis
    if axis is None:
        return volume, body
    index = body[axis] if rng.random() < 0.5 else rng.integers(volume.shape[axis + 1])
    return volume.take(int(index), axis=axis + 1), np.delete(body, axis)


def _augmented(rng: np.random.Generator, volume: Array, body: Array, scan: Scan, found: Survey, spec: Spec) -> Patch:
    strength = RELATIVE if spec.whole_scan_intensity else ABSOLUTE
    roi, constant = spec.tiling.roi_size, spec.tiling.padding_mode == "constant"
    matrix = draw_matrix(rng, len(roi))
    start = draw_start(rng, volume.shape[1:], covered(matrix, roi), body, outside=constant)
    raw = sample(volume, start, matrix, roi, [channel.background for channel in found.channels])
    tones = [draw_tone(rng, channel, strength) for channel in found.channels]
    values = np.stack(
        [_changed(rng, raw, index, tone, strength, found.channels[index]) for index, tone in enumerate(tones)]
    )
    if rng.random() < EMPTIED:
        _empty(rng, values, found)
    statistics = _statistics(rng, scan, found, tones, spec)
    return Patch(_sent(values, raw.inside, spec), statistics)


def _changed(rng: np.random.Generator, raw: Cut, index: int, tone: Tone, strength: Strength, channel: Channel) -> Array:
    """A channel with other values. What is exactly background stays so, and nothing falls below the scan's lowest."""
    values = degrade(rng, tone(raw.values[index]), channel, strength)
    values = np.maximum(values, channel.lowest)
    if channel.background is None:
        return values
    kept: Array = np.where(raw.background[index], np.float32(channel.background), values)
    return kept


def _empty(rng: np.random.Generator, values: Array, found: Survey) -> None:
    """Leave a slab at one side, or nothing, of [channel, *roi]; only where a value stands for background."""
    axis, first = 1 + int(rng.integers(values.ndim - 1)), rng.random() < 0.5
    thick = int(rng.integers(0, max(int(values.shape[axis] * SLAB), 1) + 1))
    gone = slice(thick, None) if first else slice(0, values.shape[axis] - thick)
    for channel, one in zip(found.channels, values, strict=True):
        if channel.background is not None:
            one[(*(slice(None),) * (axis - 1), gone)] = channel.background


def _statistics(rng: np.random.Generator, scan: Scan, found: Survey, tones: list[Tone], spec: Spec) -> Array:
    """[channel, 2] float32: those of the whole scan after the change of tone, and somewhat off."""
    if not spec.whole_scan_intensity:
        return scan.statistics
    samples = [channel.sample.astype(np.float64) for channel in found.channels]
    before = intensity_statistics(np.stack(samples), spec)
    toned = [tone(sample) for tone, sample in zip(tones, samples, strict=True)]
    after = intensity_statistics(np.stack(toned).astype(np.float64), spec)
    # The sample's own error cancels: what did not change is exactly the scan's.
    subtract = scan.statistics[:, 0] + (after[:, 0] - before[:, 0])
    divide = scan.statistics[:, 1] * (after[:, 1] / before[:, 1])
    subtract = subtract + rng.uniform(-SHIFT, SHIFT, len(divide)) * divide
    divide = divide * np.exp(rng.uniform(-STRETCH, STRETCH, len(divide)))
    return np.stack([subtract, divide], axis=1).astype(np.float32)


def _sent(values: Array, inside: Array, spec: Spec) -> Array:
    """[channel, *roi] in the input's data type, whose lowest value marks padding. No value is below the scan's own."""
    mark = PADDING[spec.input.dtype]
    highest = float(np.iinfo(np.int16).max) if spec.input.dtype == "int16" else -mark
    whole = np.rint(values) if spec.input.dtype == "int16" else values
    roi: Array = np.minimum(whole, highest).astype(NUMPY_TYPES[spec.input.dtype])
    if spec.tiling.padding_mode == "constant":
        roi[:, ~inside] = mark
    return roi
