"""Positions and weights of tiles, by hand and by SciPy's filter. Equality with MONAI and nnU-Net is in the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.rules.all import RULES
from voxtile.tiling.rules.base import for_each_axis
from voxtile.tiling.rules.monai import monai_gaussian, monai_starts
from voxtile.tiling.rules.nnunet import nnunet_gaussian, nnunet_starts


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "expected"),
    [
        (10, 4, 0.0, (0, 4, 6)),  # the last tile is shifted back
        (12, 4, 0.0, (0, 4, 8)),  # it fits
        (10, 4, 0.5, (0, 2, 4, 6)),
        (11, 5, 0.5, (0, 2, 4, 6)),  # an interval of 2.5 is cut off to 2
        (6, 4, 0.99, (0, 1, 2)),  # never less than a voxel
        (5, 4, 0.25, (0, 1)),
        (4, 4, 0.25, (0,)),
        (3, 4, 0.25, (0,)),
    ],
)
def test_monais_tiles_lie_at_a_fixed_interval(size: int, roi: int, overlap: float, expected: tuple[int, ...]) -> None:
    assert monai_starts(size, roi, overlap) == expected


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "expected"),
    [
        (110, 64, 0.5, (0, 23, 46)),  # 32 at most: two steps of 23
        (10, 4, 0.0, (0, 3, 6)),
        (12, 4, 0.0, (0, 4, 8)),
        (11, 4, 0.5, (0, 2, 4, 5, 7)),  # steps of 1.75, rounded
        (10, 4, 0.75, (0, 1, 2, 3, 4, 5, 6)),
        (5, 4, 0.5, (0, 1)),
        (4, 2, 0.0, (0, 2)),
        (4, 4, 0.5, (0,)),
        (3, 4, 0.5, (0,)),
        (3, 1, 0.5, (0, 1, 2)),  # slices
        (1, 1, 0.5, (0,)),
    ],
)
def test_nnunets_tiles_are_evenly_spread(size: int, roi: int, overlap: float, expected: tuple[int, ...]) -> None:
    assert nnunet_starts(size, roi, overlap) == expected


@pytest.mark.parametrize("sigma", [0.4, (0.4, 0.3, 0.5)])
def test_monais_weight_falls_off_from_the_middle_of_the_tile(sigma: float | tuple[float, ...]) -> None:
    roi, shares = (5, 4, 3), np.broadcast_to(sigma, 3)
    found = monai_gaussian(roi, sigma)
    assert found.dtype == np.float32
    assert found.shape == roi
    for at in np.ndindex(roi):
        away = [(i - (n - 1) / 2) / (n * share) for i, n, share in zip(at, roi, shares, strict=True)]
        assert found[at] == pytest.approx(np.exp(-np.dot(away, away) / 2), rel=1e-5)


def test_monais_weight_is_a_thousandth_at_least() -> None:
    ends, middle = np.exp(-0.5 * (4 / 1.125) ** 2), np.exp(-0.5 * (1 / 1.125) ** 2)
    assert monai_gaussian((9,), 0.125)[[0, 3]] == pytest.approx([ends, middle], rel=1e-5)
    found = monai_gaussian((9, 9), 0.125)
    assert found[0, 0] == found.min() == np.float32(1e-3)  # ends² is far less
    assert found[3, 4] == pytest.approx(middle, rel=1e-5)


@pytest.mark.parametrize("roi", [(8,), (9,), (60,), (5, 12), (6, 7, 10)])
@pytest.mark.parametrize("sigma", [1 / 8, 0.05, 0.02, 0.3])
def test_nnunets_weight_is_a_filtered_impulse_whose_peak_is_ten(roi: tuple[int, ...], sigma: float) -> None:
    impulse = np.zeros(roi)
    impulse[tuple(n // 2 for n in roi)] = 1
    filtered = gaussian_filter(impulse, [n * sigma for n in roi], mode="constant", truncate=4.0)
    expected = (filtered / filtered.max() * 10).astype(np.float32).astype(np.float16)
    expected[expected == 0] = expected[expected != 0].min()
    found = nnunet_gaussian(roi, sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-3)  # a bit of half precision
    assert found.max() == 10


def test_nnunets_weight_is_rounded_to_half_by_way_of_single_precision() -> None:
    """Torch does so. Where a double lies next to the middle of two halves, it makes a difference."""
    roi = (28, 256, 256)
    lines = [gaussian_filter1d(np.eye(1, n, n // 2)[0], n / 8, mode="constant", truncate=4.0) for n in roi]
    weights = np.einsum("i,j,k->ijk", *lines)
    weights *= 10 / weights.max()
    at_once, in_two_steps = weights.astype(np.float16), weights.astype(np.float32).astype(np.float16)
    found = nnunet_gaussian(roi, 1 / 8)
    assert (found == in_two_steps)[in_two_steps > 0].all()
    assert (found != at_once)[in_two_steps > 0].any()


def test_nnunets_weight_has_a_sigma_for_each_axis() -> None:
    narrow, wide = nnunet_gaussian((9,), 0.1), nnunet_gaussian((9,), 0.3)
    found = nnunet_gaussian((9, 9), (0.1, 0.3))
    np.testing.assert_allclose(found[:, 4], narrow, rtol=1e-3)
    np.testing.assert_allclose(found[4], wide, rtol=1e-3)
    assert not np.allclose(narrow, wide)


def test_one_number_counts_for_every_axis() -> None:
    assert list(for_each_axis(0.25, (4, 5, 6))) == [0.25, 0.25, 0.25]
    assert list(for_each_axis((0.1, 0.2), (4, 5))) == [0.1, 0.2]


@pytest.mark.parametrize("semantics", RULES)
def test_a_plan_has_the_weights_and_positions_of_its_rule(semantics: str) -> None:
    tiling = Tiling(semantics=semantics, overlap=(0.5, 0.0, 0.75), sigma_scale=(0.1, 0.3, 0.2))
    plan = plan_tiles((24, 16, 21), (16, 8, 12), tiling)
    assert plan.starts == ((0, 8), (0, 8), (0, 3, 6, 9))
    np.testing.assert_array_equal(plan.weights, RULES[semantics].weights((16, 8, 12), (0.1, 0.3, 0.2)))
    plain = plan_tiles((24, 16, 21), (16, 8, 12), Tiling(semantics=semantics, mode="constant")).weights
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, np.ones((16, 8, 12)))
