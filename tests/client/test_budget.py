"""What is predicted is what is allowed: the sum of all buffers by name, and what is left for preparing."""

from __future__ import annotations

import pytest

from tests.support.phantoms import card_of, phantom_volume
from voxtile.budget import MIB, RUNTIME_BYTES, left_for_preparing
from voxtile.chains.prepare import prepare_scan
from voxtile.errors import MemoryLimitError


def test_what_is_left_for_the_scan_on_the_models_grid() -> None:
    volume = phantom_volume()
    assert left_for_preparing(volume, None) is None
    assert left_for_preparing(volume, MIB) == 0
    assert left_for_preparing(volume, RUNTIME_BYTES + 3 * volume.data.nbytes) == 2 * volume.data.nbytes


def test_a_grid_that_exceeds_the_memory_allowed_is_refused_before_it_is_made() -> None:
    volume = phantom_volume((24, 31, 27), (20.0, 15.0, 17.0))
    left = left_for_preparing(volume, 300 * MIB)
    with pytest.raises(MemoryLimitError, match=r"461 × 451 × 443 voxels for this model.*0.15 GiB are left of what is"):
        prepare_scan(volume, card_of(spacing=(1.0, 1.0, 1.0)), max_bytes=left)
