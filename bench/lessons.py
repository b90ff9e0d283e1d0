"""What the stand-ins of trained networks learn: the very scans that are measured, patch by patch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxtile.chains.nnunet.resampling import resample
from voxtile.tiling.rules.nnunet import nnunet_starts

from .density_network import SCAN, fingerprint, fit_densities, grid_of
from .networks import DEFAULT_WIDTHS, TISSUES, plain_conv_unet, seeded
from .scans import CT_LABELS, Shape, brain_files, ct_labels, ct_values, tissue_labels

PATCH = 64
"""Voxels an edge of the brain's patches: what the lowest of nnU-Net's six stages still normalises, 2³ of them."""
CT_ROI: Shape = (96, 96, 96)
JITTER = 0.05
"""How far contrast, brightness and noise of a patch are varied, in standard deviations of the scan."""

Patches = Iterator[tuple[Tensor, Tensor]]
"""Values [1, 1, z, y, x] and labels [1, z, y, x], without an end."""


@dataclass(frozen=True)
class Example:
    """values: normalised [z, y, x]; labels: uint8 of the same shape, below `classes`."""

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    classes: int


@dataclass(frozen=True)
class Lesson:
    """How a stand-in is trained. rate: the largest one, reached after `warm_up` steps."""

    steps: int
    rate: float
    warm_up: int
    network: Callable[[], nn.Module]
    patches: Callable[[Path], Patches]


def brain(data: Path) -> Example:
    """The whole template at 1 mm, z-score."""
    values = np.asanyarray(nib.load(brain_files(data)["t1"]).dataobj).astype(np.float32)
    labels = tissue_labels(data, (values.shape[0], values.shape[1], values.shape[2]))
    return Example(_turned((values - values.mean()) / values.std()), _turned(labels), len(TISSUES))


def chest(scan: Shape = SCAN, roi: Shape = CT_ROI) -> Example:
    """The made-up CT as nnU-Net prepares it: normalised, then resampled with order 3; labels of the nearest voxel."""
    figures = fingerprint(roi)
    clipped = _turned(ct_values(scan)).clip(figures["percentile_00_5"], figures["percentile_99_5"])
    values = ((clipped - figures["mean"]) / figures["std"]).astype(np.float32)
    grid = grid_of(roi)[::-1]
    labels = _turned(ct_labels(scan))
    nearest = [_nearest(full, n) for full, n in zip(labels.shape, grid, strict=True)]
    return Example(resample(values[None], grid)[0], labels[np.ix_(*nearest)], CT_LABELS)


def varied_patches(example: Example, patch: int = PATCH) -> Patches:
    """Each around a random voxel of a random class, mirrored, brighter or darker, with noise."""
    rng = np.random.default_rng(20)
    places = [np.flatnonzero(example.labels == label) for label in range(example.classes)]
    shape = np.array(example.labels.shape)
    while True:
        chosen = places[int(rng.integers(len(places)))]
        centre = np.unravel_index(chosen[rng.integers(chosen.size)], example.labels.shape)
        first = np.clip(np.array(centre) - rng.integers(patch // 4, 3 * patch // 4, 3), 0, shape - patch)
        where = tuple(slice(int(begin), int(begin) + patch) for begin in first)
        gain, offset, noise = JITTER * rng.uniform((-1, -1, 0), 1)
        values = (1 + gain) * example.values[where] + offset + noise * rng.standard_normal((patch,) * 3)
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        yield _tensors(np.flip(values.astype(np.float32), axes), np.flip(example.labels[where], axes))


def tiles_in_turn(example: Example, roi: Shape) -> Patches:
    """The tiles that nnU-Net lays: instance norm makes a voxel's features those of its tile."""
    starts = (nnunet_starts(n, r, 0.5) for n, r in zip(example.labels.shape, roi, strict=True))
    for corner in itertools.cycle(itertools.product(*starts)):
        where = tuple(slice(begin, begin + r) for begin, r in zip(corner, roi, strict=True))
        yield _tensors(example.values[where], example.labels[where])


def _density_network() -> nn.Module:
    network = seeded(lambda: plain_conv_unet(DEFAULT_WIDTHS, CT_LABELS))
    fit_densities(network, CT_ROI)
    return network


def _tensors(values: NDArray[Any], labels: NDArray[Any]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(values[None, None].copy()), torch.from_numpy(labels[None].copy()).long()


def _nearest(n_in: int, n_out: int) -> NDArray[np.int64]:
    """Which of `n_in` voxels lies nearest to each of `n_out` that fill the same space."""
    positions = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    return np.rint(positions).astype(np.int64).clip(0, n_in - 1)


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    """nnU-Net's axes are (z, y, x)."""
    return np.ascontiguousarray(values.transpose(2, 1, 0))


LESSONS = {
    "brain": Lesson(
        400, 1e-3, 0, lambda: seeded(lambda: plain_conv_unet(DEFAULT_WIDTHS, len(TISSUES))),
        lambda data: varied_patches(brain(data)),
    ),
    # It begins where densities are known and only borders between organs are not: from random weights, 25 labels
    # take hours. Large steps would undo that.
    "chest": Lesson(150, 3e-4, 20, _density_network, lambda _: tiles_in_turn(chest(), CT_ROI)),
}  # fmt: skip
