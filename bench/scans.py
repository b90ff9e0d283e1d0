"""The scans: the MNI152 brain, a made-up chest CT, crops of both, and a brain with air beside it.

Knows nothing of networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from models.training.mni152 import fetch_mni152

Shape = tuple[int, int, int]
"""Voxels along (x, y, z)."""

CT_LABELS = 25  # with the background
CT_SPACING = (0.8, 0.8, 1.5)  # millimetres along (x, y, z)
AIR, FAT, LIGHT, HEAVY, NOISE = -1000, -90, (-750, -210), (30, 1500), 8  # Hounsfield units


def brain_crop(data: Path, shape: Shape) -> Path:
    """Returns a file with the middle `shape` voxels of the brain: uint8, 1 mm, RAS."""

    def make(path: Path) -> None:
        image = nib.load(fetch_mni152(data)["t1"])
        nib.save(image.slicer[_middle(image.shape, shape)], path)

    return made(data / f"brain-{by(shape, 'x')}.nii.gz", make)


def half_air(data: Path, shape: Shape) -> Path:
    """Returns a file with a brain crop and as much air behind it along the first axis."""

    def make(path: Path) -> None:
        crop = nib.load(brain_crop(data, shape))
        values = np.asanyarray(crop.dataobj)
        nib.save(nib.Nifti1Image(np.concatenate([values, np.zeros_like(values)]), crop.affine), path)

    return made(data / f"half-air-{by(shape, 'x')}.nii.gz", make)


def ct_scan(data: Path, shape: Shape) -> Path:
    """Returns a file with the made-up chest CT, int16 Hounsfield units."""

    def make(path: Path) -> None:
        nib.save(nib.Nifti1Image(ct_values(shape), np.diag([*CT_SPACING, 1.0])), path)

    return made(data / f"chest-{by(shape, 'x')}.nii.gz", make)


def ct_labels(shape: Shape) -> NDArray[np.uint8]:
    """Returns labels [x, y, z]: 0 outside, 1 the body, 2 … 24 organs, which are ellipsoids apart from each other."""
    grid = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    labels = _ellipsoid(grid, (0, 0, 0), (0.9, 0.75, 2.0)).astype(np.uint8)
    rng = np.random.default_rng(20)
    places = itertools.product((-0.66, 0, 0.66), (-0.3, 0.3), (-0.58, -0.2, 0.2, 0.58))
    for value, (z, y, x) in zip(range(2, CT_LABELS), places, strict=False):
        centre = np.array((x, y, z)) + rng.uniform(-0.02, 0.02, 3)
        half = rng.uniform((0.13, 0.2, 0.22), (0.17, 0.26, 0.29))
        labels[_ellipsoid(grid, centre, half) & (labels > 0)] = value
    return labels


def ct_values(shape: Shape) -> NDArray[np.int16]:
    """Returns Hounsfield units [x, y, z]: a density for each label of `ct_labels`, with noise over all."""
    rng = np.random.default_rng(21)
    values = _densities()[ct_labels(shape)]
    values += NOISE * rng.standard_normal(shape, dtype=np.float32)
    return np.rint(values).astype(np.int16)


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """Returns `path`; if there is no such file, `make` writes it, first under another name."""
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        partial.replace(path)
    return path


def by(shape: tuple[int, ...], sign: str = "×") -> str:
    """Returns a shape in words, such as 512×512×300."""
    return sign.join(map(str, shape))


def _densities() -> NDArray[np.float32]:
    """Returns the density of each label. Organs are in no order; some are lighter than the body, most are heavier."""
    organs = np.concatenate([np.linspace(*LIGHT, 8), np.linspace(*HEAVY, CT_LABELS - 10)])
    units = np.concatenate([[AIR, FAT], np.random.default_rng(22).permutation(organs)])
    return units.astype(np.float32)


def _ellipsoid(grid: list[NDArray[np.float32]], centre: Any, half: Any) -> NDArray[np.bool_]:
    x, y, z = (((axis - c) / h) ** 2 for axis, c, h in zip(grid, centre, half, strict=True))
    inside: NDArray[np.bool_] = x[:, None, None] + y[None, :, None] + z[None, None, :] <= 1
    return inside


def _middle(full: tuple[int, ...], shape: Shape) -> tuple[slice, ...]:
    if any(size > there for size, there in zip(shape, full, strict=True)):
        raise ValueError(f"expected a crop within {full}, found {shape}")
    return tuple(slice((there - size) // 2, (there + size) // 2) for size, there in zip(shape, full, strict=True))
