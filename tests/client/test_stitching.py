"""Stitching: identity, MONAI's own sums, bounded buffers, and the order of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from tests.support.memory_limits import held_bytes
from voxtile.card import Tiling
from voxtile.tiling.plan import TilePlan, plan_tiles
from voxtile.tiling.stitch import Stitcher

SHAPES = [
    ((33, 20, 27), (16, 16, 16)),
    ((10, 40, 7), (16, 8, 12)),
    ((5, 5, 5), (8, 8, 8)),
    ((70, 31, 16), (16, 16, 16)),
]
RELATIVE = 1e-5
"""float32 sums of up to 64 products in another order of the weights' sum."""


def padded_scan(scan: NDArray[np.float32], plan: TilePlan) -> NDArray[np.float32]:
    pads = [(b, p - b - n) for b, p, n in zip(plan.before, plan.padded, plan.image, strict=True)]
    return np.pad(scan, [(0, 0), *pads])


def stitch(scan: NDArray[np.float32], plan: TilePlan, network=lambda x: x) -> NDArray[np.float32]:
    """The whole path in process: cut, apply `network` [channel, *roi] -> [score, *roi], stitch."""
    padded = padded_scan(scan, plan)
    channels = len(network(padded[(slice(None), *next(iter(plan)).slices)]))
    stitcher = Stitcher(plan, channels)
    planes = []
    for tile in plan:
        planes += [p.copy() for p in stitcher.add(tile, network(padded[(slice(None), *tile.slices)]))]
    planes += [p.copy() for p in stitcher.finish()]
    return np.concatenate(planes, axis=1)


@pytest.mark.parametrize(("image", "roi"), SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("semantics", ["monai", "nnunet"])
def test_identity_network_reconstructs_the_scan(
    image: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str, semantics: str
) -> None:
    scan = np.random.default_rng(3).integers(-1000, 3000, (2, *image)).astype(np.float32)
    plan = plan_tiles(image, roi, Tiling(semantics=semantics, overlap=overlap, mode=mode))
    np.testing.assert_array_equal(np.rint(stitch(scan, plan)), scan)


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


def test_planes_are_finished_as_soon_as_no_later_tile_reaches_them() -> None:
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.5))
    stitcher = Stitcher(plan, 1)
    finished = [sum(p.shape[1] for p in stitcher.add(tile, np.ones((1, 16, 16, 16)))) for tile in plan]
    assert finished == [0, 8, 8, 8, 8, 8, 8]
    assert sum(p.shape[1] for p in stitcher.finish()) == 16


def test_buffers_do_not_grow_with_the_volume_along_the_first_axis() -> None:
    short, long = (plan_tiles((n, 32, 32), (16, 16, 16), Tiling()) for n in (20, 2000))
    assert held_bytes(Stitcher(short, 3)) == held_bytes(Stitcher(long, 3))


def test_a_tile_behind_finished_planes_is_refused() -> None:
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.5))
    tiles = list(plan)
    stitcher = Stitcher(plan, 1)
    for tile in tiles[:3]:
        list(stitcher.add(tile, np.ones((1, 16, 16, 16))))
    with pytest.raises(ValueError, match="tiles come in order"):
        list(stitcher.add(tiles[0], np.ones((1, 16, 16, 16))))


def test_skipped_tiles_take_no_part_and_score_as_background() -> None:
    plan = plan_tiles((32, 8, 8), (8, 8, 8), Tiling(overlap=0.5))
    stitcher = Stitcher(plan, 2, np.float32([1, 0]))
    planes = []
    for tile in plan:
        skipped = tile.start[0] >= 16
        scores = np.stack([np.zeros(tile.shape), np.full(tile.shape, 5.0)])
        planes += [p.copy() for p in (stitcher.skip(tile) if skipped else stitcher.add(tile, scores))]
    planes += [p.copy() for p in stitcher.finish()]
    result = np.concatenate(planes, axis=1)
    np.testing.assert_allclose(result[1, :20], 5.0, rtol=1e-6)
    np.testing.assert_array_equal(result[0, 20:], 1)
    np.testing.assert_array_equal(result[1, 20:], 0)
