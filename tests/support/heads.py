"""Asymmetric heads of any size, as arrays and as nibabel images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

AFFINE = np.array([[1.0, 0, 0, -30], [0, 1.2, 0, 10], [0, 0, 0.9, 5], [0, 0, 0, 1]])


def head(shape: tuple[int, int, int], seed: int = 1) -> NDArray[np.float32]:
    """An asymmetric head: smooth noise inside an ellipsoid with one ear, zero outside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(seed).normal(size=shape)
    inside = ((grid / np.array([0.8, 0.9, 0.85])[:, None, None, None]) ** 2).sum(0) < 1
    ear = (np.abs(grid - np.array([0.85, 0.1, 0.3])[:, None, None, None]) < 0.12).all(0)
    values = 100 + 30 * np.sin(3 * grid[0] + 2 * grid[1]) + 20 * grid[2] + 5 * noise
    return np.where(inside | ear, np.rint(values), 0).astype(np.float32)


def image(values: NDArray[np.float32], affine: NDArray[np.float64] = AFFINE) -> nib.Nifti1Image:
    """`values` as an int16 image."""
    return nib.Nifti1Image(values.astype(np.int16), affine)
