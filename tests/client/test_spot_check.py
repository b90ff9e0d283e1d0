"""The spot check counts how many of the tiles left out would have got a label, and changes nothing."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from voxtile import Segmenter
from voxtile.card import Tiling
from voxtile.skipping import spot_check_tiles
from voxtile.tiling.plan import plan_tiles


def spot_check(network: Any, count: int) -> tuple[int, int, int]:
    """Tiles left out, checked, and found to hold a label: of a scan of 8 tiles, all of them empty but the first."""
    card = card_of(background={"at_most": 0.0}, tiling={"semantics": "monai", "overlap": 0.0, "mode": "constant"})
    values = np.zeros((128, 16, 16), np.float32)
    values[3:9, 4:11, 5:14] = 50
    with Segmenter(
        transport=InMemoryTransport(card, network), skip_empty=True, spot_check=count, sw_batch_size=1
    ) as segmenter:
        result = segmenter.segment(nib.Nifti1Image(values, np.eye(4)))
    assert not result.labels[32:].any()  # what is left out stays background, whatever the check finds
    report = result.report
    return report.skipped_tiles, report.spot_checked_tiles, report.spot_check_changed_tiles


def scores(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Logits that decide for these labels."""
    found = labels.astype(np.float32)
    return np.concatenate([0.5 - found, found - 0.5], axis=1)


@pytest.mark.parametrize(("count", "checked"), [(0, 0), (1, 1), (3, 3), (99, 6)])
def test_every_checked_tile_with_a_label_counts(count: int, checked: int) -> None:
    assert spot_check(lambda tiles: scores(np.ones_like(tiles)), count) == (6, checked, checked)
    assert spot_check(lambda tiles: scores(tiles > 0), count) == (6, checked, 0)


def test_one_voxel_in_every_second_tile_is_counted() -> None:
    seen: list[int] = []

    def network(tiles: NDArray[Any]) -> NDArray[np.float32]:
        labels = np.zeros_like(tiles)
        if (tiles <= 0).all():
            seen.append(len(seen))
            labels[0, 0, 15, 0, 7] = len(seen) % 2
        return scores(labels)

    assert spot_check(network, 9) == (6, 6, 3)
    assert len(seen) == 6 + 1  # the tile beside the end is sent anyway


def test_checked_tiles_are_spread_over_those_left_out() -> None:
    plan = plan_tiles((40, 1, 1), (2, 1, 1), Tiling(overlap=0.0))
    left_out = {1, 2, 4, 5, 7, 8, 11, 13, 14, 19}

    def checked(count: int) -> list[int]:
        return [tile.index for tile in spot_check_tiles(plan, left_out, count)]

    assert checked(0) == []
    assert checked(1) == [1]
    assert checked(2) == [1, 8]
    assert checked(3) == [1, 5, 11]
    assert checked(4) == [1, 4, 7, 11]
    assert checked(6) == [1, 2, 4, 5, 7, 8]
    assert checked(99) == sorted(left_out)
    assert spot_check_tiles(plan, (), 3) == []
