"""Scans that the network was not made for: the template changed in known ways, with its labels.

Works on whole volumes in NumPy and SciPy, apart from the training augmentation, so that an error there does
not hide here. Every perturbation is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.training.brain_data import HELD_OUT, Brain, Triple, Volume

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelledScan:
    """A scan `t1` (x, y, z) of any scale, 0 outside the head, its labels, and the held-out voxels in it."""

    t1: Floats
    labels: Volume
    held_out: npt.NDArray[np.bool_]


def as_it_is(brain: Brain) -> LabelledScan:
    """Returns the template itself, intensities 0 to 1."""
    held_out = np.zeros(brain.shape, dtype=np.bool_)
    held_out[HELD_OUT.slices] = True
    return LabelledScan(brain.t1.astype(np.float32) / np.float32(255), brain.labels, held_out)


def zscore(t1: Floats) -> Floats:
    """Applies the service's intensity rule: mean and population deviation of the non-zero voxels, used on all."""
    values = t1[t1 != 0].astype(np.float64)
    normal: Floats = ((t1 - values.mean()) / values.std()).astype(np.float32)
    return normal


def noisy(scan: LabelledScan, share: float) -> LabelledScan:
    """Adds Gaussian noise inside the head; its deviation is `share` of the head's own."""
    head = scan.t1 > 0
    noise = np.random.default_rng(1).standard_normal(scan.t1.shape, dtype=np.float32)
    return replace(scan, t1=np.clip(scan.t1 + noise * (share * scan.t1[head].std()), 0, None) * head)


def with_gamma(scan: LabelledScan, gamma: float) -> LabelledScan:
    """Changes the contrast: intensity, from 0 to 1, to the power `gamma`."""
    return replace(scan, t1=(scan.t1**gamma).astype(np.float32))


def shaded(scan: LabelledScan, share: float) -> LabelledScan:
    """Applies a bias field from 1 - share at the back to 1 + share at the front, and half of it upwards."""
    y = np.linspace(-1, 1, scan.t1.shape[1], dtype=np.float32)[None, :, None]
    z = np.linspace(-1, 1, scan.t1.shape[2], dtype=np.float32)[None, None, :]
    return replace(scan, t1=scan.t1 * (1 + share * y) * (1 + share / 2 * z))


def coarser(scan: LabelledScan, spacing: Triple) -> LabelledScan:
    """Samples at `spacing` mm along (x, y, z), each voxel a mean over its size, and brings it back to 1 mm."""
    head = scan.t1 > 0
    mean = ndimage.uniform_filter(scan.t1, size=spacing, mode="nearest")
    x, y, z = (slice(n // 2, None, n) for n in spacing)
    coarse = mean[x, y, z]
    where = [
        (np.arange(n, dtype=np.float64) - s // 2 + (0.5 if s % 2 == 0 else 0)) / s
        for n, s in zip(scan.t1.shape, spacing, strict=True)
    ]
    for axis, places in enumerate(where):
        coarse = _linear(coarse, places, axis)
    return replace(scan, t1=coarse * head)


def _linear(values: Floats, places: npt.NDArray[np.float64], axis: int) -> Floats:
    """Reads `values` at fractional indices along one axis, linearly, the border repeated."""
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.minimum(places.astype(np.intp), values.shape[axis] - 2)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = (places - low).astype(np.float32).reshape(shape)
    read: Floats = values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
    return read


def turned(scan: LabelledScan, degrees: float) -> LabelledScan:
    """Turns the head by `degrees` about x, then y, then z, each about the volume's centre."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix = about_x.T @ about_y.T @ about_z.T
    centre = (np.array(scan.t1.shape) - 1) / 2
    offset = centre - matrix @ centre

    def moved(volume: npt.NDArray[np.generic], order: int) -> npt.NDArray[np.float32]:
        turned: Floats = ndimage.affine_transform(
            volume.astype(np.float32), matrix, offset, order=order, mode="constant"
        )
        return turned

    # Linear interpolation leaves a rim of nearly 0 around the head, which would count as head.
    head = moved(scan.t1 > 0, 1) > 0.5
    labels = moved(scan.labels, 0).astype(np.uint8)
    return LabelledScan(moved(scan.t1, 1) * head, labels, moved(scan.held_out, 0) > 0.5)


def all_at_once(scan: LabelledScan) -> LabelledScan:
    """Turns, shades, changes the contrast and adds noise."""
    return noisy(with_gamma(shaded(turned(scan, 8), 0.2), 0.8), 0.15)


# A left-right mirror is missing on purpose: the template is symmetric, so mirroring it changes nothing.
PERTURBATIONS: Mapping[str, Callable[[LabelledScan], LabelledScan]] = MappingProxyType(
    {
        "as it is": lambda scan: scan,
        "noise, 25 % of the head's deviation": lambda scan: noisy(scan, 0.25),
        "contrast, gamma 1.4": lambda scan: with_gamma(scan, 1.4),
        "bias field, ±30 % back to front": lambda scan: shaded(scan, 0.3),
        "2 mm voxels": lambda scan: coarser(scan, (2, 2, 2)),
        "1 × 1 × 4 mm voxels": lambda scan: coarser(scan, (1, 1, 4)),
        "turned 10° about each axis": lambda scan: turned(scan, 10),
        "turned, shaded, gamma 0.8, noise": all_at_once,
    }
)
