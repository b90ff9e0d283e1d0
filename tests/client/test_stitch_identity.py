"""A network that returns what it is given reconstructs the scan, whatever the tiling."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.stitched import stitch
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.rules.all import RULES

SHAPES = [
    ((33, 20, 27), (16, 16, 16)),
    ((10, 40, 7), (16, 8, 12)),
    ((5, 5, 5), (8, 8, 8)),
    ((70, 31, 16), (16, 16, 16)),
]


@pytest.mark.parametrize(("image", "roi"), SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("semantics", RULES)
def test_identity_network_reconstructs_the_scan(
    image: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str, semantics: str
) -> None:
    scan = np.random.default_rng(3).integers(-1000, 3000, (2, *image)).astype(np.float32)
    plan = plan_tiles(image, roi, Tiling(semantics=semantics, overlap=overlap, mode=mode))
    np.testing.assert_array_equal(np.rint(stitch(scan, plan)), scan)
