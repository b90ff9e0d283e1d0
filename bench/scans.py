"""What is segmented: the MNI152 brain, a made-up chest CT, crops of both, and a scan that is half air."""

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

CT_SHAPE: Shape = (512, 512, 300)
CT_LABELS = 25
CT_SPACING = (0.8, 0.8, 1.5)
AIR, FAT = -1000, -90
LIGHT, HEAVY = (-750, -210), (30, 1500)
NOISE = 8
"""Hounsfield units."""


def brain_files(data: Path) -> dict[str, Path]:
    """The MNI152 template and its tissue maps: uint8, 1 mm, RAS, 197 × 233 × 189."""
    return fetch_mni152(data)


def brain_crop(data: Path, shape: Shape) -> Path:
    """The middle `shape` voxels of the brain."""
    return made(data / f"brain-{_times(shape)}.nii.gz", lambda path: _save_crop(brain_files(data)["t1"], shape, path))


def tissue_labels(data: Path, shape: Shape) -> NDArray[np.uint8]:
    """[x, y, z] of the same crop: 1 grey matter, 2 white matter, 0 the rest, by the larger of the template's maps."""
    files = brain_files(data)
    grey, white = (_centre(_values(files[kind]), shape).astype(np.int16) for kind in ("gm", "wm"))
    rest = 255 - grey - white
    labels: NDArray[np.uint8] = np.stack([rest, grey, white]).argmax(0).astype(np.uint8)
    return labels


def half_air(data: Path, shape: Shape) -> Path:
    """A brain crop with as much air behind it along the first axis."""

    def make(path: Path) -> None:
        brain = nib.load(brain_crop(data, shape))
        values = np.asanyarray(brain.dataobj)
        nib.save(nib.Nifti1Image(np.concatenate([values, np.zeros_like(values)]), brain.affine), path)

    return made(data / f"half-air-{_times(shape)}.nii.gz", make)


def ct_scan(data: Path, shape: Shape = CT_SHAPE) -> Path:
    """A made-up chest CT, int16 Hounsfield units."""
    return made(data / f"chest-{_times(shape)}.nii.gz", lambda path: _save_ct(shape, path))


def ct_labels(shape: Shape) -> NDArray[np.uint8]:
    """[x, y, z]: 0 outside, 1 the body, 2 … 24 organs: ellipsoids that lie apart inside it."""
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
    """[x, y, z] Hounsfield units: each structure of `ct_labels` with its own, noise over all."""
    rng = np.random.default_rng(21)
    values = _densities()[ct_labels(shape)]
    values += NOISE * rng.standard_normal(shape, dtype=np.float32)
    return np.rint(values).astype(np.int16)


def _densities() -> NDArray[np.float32]:
    """Of each label: organs in no order, some lighter than the body and most heavier."""
    organs = np.concatenate([np.linspace(*LIGHT, 8), np.linspace(*HEAVY, CT_LABELS - 10)])
    units = np.concatenate([[AIR, FAT], np.random.default_rng(22).permutation(organs)])
    return units.astype(np.float32)


def _save_ct(shape: Shape, path: Path) -> None:
    nib.save(nib.Nifti1Image(ct_values(shape), np.diag([*CT_SPACING, 1.0])), path)


def _save_crop(source: Path, shape: Shape, path: Path) -> None:
    image = nib.load(source)
    start = _start(image.shape, shape)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    nib.save(nib.Nifti1Image(_centre(_values(source), shape), affine), path)


def _values(path: Path) -> NDArray[Any]:
    return np.asanyarray(nib.load(path).dataobj)


def _start(full: tuple[int, ...], shape: Shape) -> NDArray[np.int64]:
    if any(size > there for size, there in zip(shape, full, strict=True)):
        raise ValueError(f"expected a crop within {full}, found {shape}")
    start: NDArray[np.int64] = (np.array(full) - np.array(shape)) // 2
    return start


def _centre(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    start = _start(values.shape, shape)
    return values[tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))]


def _ellipsoid(grid: list[NDArray[np.float32]], centre: Any, half: Any) -> NDArray[np.bool_]:
    x, y, z = (((axis - c) / h) ** 2 for axis, c, h in zip(grid, centre, half, strict=True))
    inside: NDArray[np.bool_] = x[:, None, None] + y[None, :, None] + z[None, None, :] <= 1
    return inside


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made under another name first where it is not there."""
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        partial.replace(path)
    return path


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
