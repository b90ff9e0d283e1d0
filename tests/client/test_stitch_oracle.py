"""Stitching against MONAI's own sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from tests.support.stitched import stitch
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles

SHAPES = [
    ((33, 20, 27), (16, 16, 16)),
    ((10, 40, 7), (16, 8, 12)),
    ((5, 5, 5), (8, 8, 8)),
    ((70, 31, 16), (16, 16, 16)),
]

RELATIVE = 1e-5
"""float32 sums of up to 64 products in another order of the weights' sum."""


@pytest.mark.parametrize(("image", "roi"), SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("sigma_scale", [0.125, 0.25])
def test_sums_equal_monai(
    image: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str, sigma_scale: float
) -> None:
    scan = np.random.default_rng(5).normal(size=(1, *image)).astype(np.float32)
    ramp = np.linspace(-1, 2, int(np.prod(roi)), dtype=np.float32).reshape(roi)

    def network(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([x * ramp, np.tanh(x) + ramp])

    expected = sliding_window_inference(
        torch.from_numpy(scan)[None],
        roi,
        3,
        lambda x: torch.from_numpy(np.stack([network(one) for one in x.numpy()])),
        overlap=overlap,
        mode=mode,
        sigma_scale=sigma_scale,
    )[0].numpy()
    plan = plan_tiles(image, roi, Tiling(overlap=overlap, mode=mode, sigma_scale=sigma_scale))
    np.testing.assert_allclose(stitch(scan, plan, network), expected, rtol=RELATIVE, atol=RELATIVE)


def test_two_dimensional_tiles() -> None:
    scan = np.random.default_rng(7).normal(size=(1, 5, 20, 30)).astype(np.float32)
    plan = plan_tiles(scan.shape[1:], (1, 16, 16), Tiling(overlap=0.5))
    expected = torch.stack(
        [
            sliding_window_inference(one, (16, 16), 2, torch.tanh, overlap=0.5, mode="gaussian")
            for one in torch.from_numpy(scan).permute(1, 0, 2, 3)[:, None]
        ]
    )
    np.testing.assert_allclose(stitch(scan, plan, np.tanh)[0], expected[:, 0, 0].numpy(), rtol=RELATIVE, atol=1e-6)
