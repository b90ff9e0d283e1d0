"""Linear and nearest resampling against torch's grid_sample."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from voxtile.chains.monai.resample import AxisMap, resample

FLOAT32_ROUNDING = 3e-6
"""Relative: three blends in float32, each of a few units in the last place."""


def torch_sampled(source: NDArray[np.float32], maps: tuple[AxisMap, AxisMap, AxisMap]) -> NDArray[np.float32]:
    """The same by `grid_sample` (border, align_corners=True), with coordinates in its own range of -1 to 1."""
    places = [2 * (m.scale * np.arange(m.target) + m.offset) / max(m.source - 1, 1) - 1 for m in maps]
    grid = np.stack(np.meshgrid(*places, indexing="ij")[::-1], -1)[None]
    sampled: NDArray[np.float32] = torch.nn.functional.grid_sample(
        torch.as_tensor(source[None].astype(np.float64)),
        torch.as_tensor(grid),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0].numpy()
    return sampled


MAPS = (AxisMap(9, 14, 0.61, 0.0), AxisMap(11, 5, 2.3, -0.4), AxisMap(8, 8, 1.0, 0.0))


def test_it_equals_grid_sample() -> None:
    source = np.random.default_rng(0).normal(0, 100, (3, 9, 11, 8)).astype(np.float32)
    np.testing.assert_allclose(resample(source, MAPS), torch_sampled(source, MAPS), atol=1000 * FLOAT32_ROUNDING)


def test_nearest_rounds_halves_to_even_as_grid_sample_does() -> None:
    axis = AxisMap(6, 11, 0.5, 0.0)
    source = torch.arange(6.0, dtype=torch.float64).reshape(1, 1, 1, 6)
    places = torch.as_tensor(2 * axis.coordinates / 5 - 1)
    grid = torch.stack((places, torch.zeros_like(places)), -1)[None, None]
    expected = torch.nn.functional.grid_sample(source, grid, mode="nearest", align_corners=True)
    np.testing.assert_array_equal(axis.nearest, expected.numpy().ravel())
