"""Positions and weights of tiles, against MONAI and nnU-Net as installed."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from voxtile.card import Semantics, Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.rules.all import RULES
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


def test_the_interval_is_cut_off_in_floating_point() -> None:
    assert monai_starts(300, 100, 0.9)[1] == 9


@pytest.mark.parametrize("roi", [(96,), (16, 24), (20, 33, 48), (8, 9, 1)])
@pytest.mark.parametrize("sigma_scale", [0.05, 0.125, 0.3])
def test_monai_weights_equal_monai(roi: tuple[int, ...], sigma_scale: float) -> None:
    expected = compute_importance_map(roi, mode="gaussian", sigma_scale=sigma_scale).numpy()
    np.testing.assert_allclose(monai_gaussian(roi, sigma_scale), expected, rtol=GAUSSIAN_RELATIVE)


@pytest.mark.parametrize("roi", [(16, 24), (20, 33, 48), (64, 64, 64), (28, 256, 256), (5, 7, 9)])
def test_nnunet_weights_equal_nnunet_bit_for_bit(roi: tuple[int, ...]) -> None:
    expected = compute_gaussian(roi, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")).numpy()
    np.testing.assert_array_equal(nnunet_gaussian(roi, 1 / 8), expected.astype(np.float32))


@pytest.mark.parametrize("semantics", ["monai", "nnunet"])
@pytest.mark.parametrize("overlap", OVERLAPS[:-1])
@pytest.mark.parametrize(("image", "roi"), [((17, 5, 30), (8, 8, 8)), ((9, 40), (1, 16)), ((3, 3, 3), (4, 3, 2))])
def test_tiles_cover_the_padded_volume(
    semantics: str, overlap: float, image: tuple[int, ...], roi: tuple[int, ...]
) -> None:
    plan = plan_tiles(image, roi, Tiling(semantics=semantics, overlap=overlap))
    seen = np.zeros(plan.padded, int)
    for tile in plan:
        assert seen[tile.slices].shape == roi
        seen[tile.slices] += 1
    assert seen.min() >= 1


def test_tiles_come_in_c_order_and_are_numbered() -> None:
    plan = plan_tiles((40, 30, 20), (16, 16, 16), Tiling(overlap=0.5))
    tiles = list(plan)
    assert [tile.index for tile in tiles] == list(range(len(plan)))
    assert [tile.start for tile in tiles] == list(itertools.product(*plan.starts))


def test_padding_puts_the_odd_voxel_behind() -> None:
    plan = plan_tiles((5, 20, 7), (8, 8, 8), Tiling())
    assert plan.padded == (8, 20, 8)
    assert plan.before == (1, 0, 0)


def test_two_dimensional_tiles_take_every_slice() -> None:
    for semantics in ("monai", "nnunet"):
        plan = plan_tiles((6, 20, 20), (1, 16, 16), Tiling(semantics=semantics, overlap=0.5))
        assert plan.starts[0] == tuple(range(6))


def test_every_semantics_of_a_card_has_its_rule() -> None:
    assert set(RULES) == set(get_args(Semantics))
