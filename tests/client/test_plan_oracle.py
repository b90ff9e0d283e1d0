"""Positions and weights of tiles, against MONAI and nnU-Net as installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from voxtile.tiling.rules.monai import monai_gaussian, monai_starts
from voxtile.tiling.rules.nnunet import nnunet_gaussian, nnunet_starts

SIZES = [(31, 16), (100, 100), (110, 64), (7, 16), (96, 95), (233, 64), (197, 100), (1, 1), (5, 1)]

OVERLAPS = [0.0, 0.1, 0.25, 0.5, 0.6, 0.8, 0.9, 0.99]

GAUSSIAN_RELATIVE = 1e-6
"""Both sides compute exp and products in float32; their libraries' exp may differ in the last bit."""


@pytest.mark.parametrize(("size", "roi"), SIZES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_monai_starts_equal_monai(size: int, roi: int, overlap: float) -> None:
    image = (max(size, roi),)
    interval = _get_scan_interval(image, (roi,), 1, (overlap,))
    expected = [patch[0].start for patch in dense_patch_slices(image, (roi,), interval)]
    assert list(monai_starts(size, roi, overlap)) == expected


@pytest.mark.parametrize(("size", "roi"), [(n, r) for n, r in SIZES if r > 1])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_nnunet_starts_equal_nnunet(size: int, roi: int, overlap: float) -> None:
    expected = compute_steps_for_sliding_window((max(size, roi),), (roi,), 1 - overlap)[0]
    assert list(nnunet_starts(size, roi, overlap)) == expected


@pytest.mark.parametrize("roi", [(96,), (16, 24), (20, 33, 48), (8, 9, 1)])
@pytest.mark.parametrize("sigma_scale", [0.05, 0.125, 0.3])
def test_monai_weights_equal_monai(roi: tuple[int, ...], sigma_scale: float) -> None:
    expected = compute_importance_map(roi, mode="gaussian", sigma_scale=sigma_scale).numpy()
    np.testing.assert_allclose(monai_gaussian(roi, sigma_scale), expected, rtol=GAUSSIAN_RELATIVE)


@pytest.mark.parametrize("roi", [(16, 24), (20, 33, 48), (64, 64, 64), (28, 256, 256), (5, 7, 9)])
def test_nnunet_weights_equal_nnunet_bit_for_bit(roi: tuple[int, ...]) -> None:
    expected = compute_gaussian(roi, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")).numpy()
    np.testing.assert_array_equal(nnunet_gaussian(roi, 1 / 8), expected.astype(np.float32))
