"""A Volume's own figures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.phantoms import ORIENTATIONS, affine_of, phantom_volume, sampled
from voxtile.io.geometry import spacing_of


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_spacing_belongs_to_the_stored_axes_in_every_orientation(codes: str) -> None:
    volume = phantom_volume((4, 5, 6), (0.5, 1.5, 3.0), codes, (10, 20, 30))
    np.testing.assert_allclose(volume.spacing, (0.5, 1.5, 3.0))
    assert volume.shape == (4, 5, 6)
    assert volume.channels == 1


def test_a_voxel_fills_its_volume_also_when_skewed() -> None:
    volume = phantom_volume((4, 5, 6), (0.5, 1.5, 3.0), "LIP", (10, 20, 30))
    assert volume.voxel_ml == pytest.approx(0.5 * 1.5 * 3.0 / 1000)
    skewed = affine_of((4, 5, 6), (1, 1, 1), shear=0.3)
    assert abs(np.linalg.det(skewed[:3, :3])) == pytest.approx(1)
    assert spacing_of(skewed)[2] == pytest.approx(np.hypot(1, 0.3))


def test_the_phantom_shows_every_flip_and_exchange() -> None:
    shape = (21, 21, 21)
    head = sampled(shape, affine_of(shape, (2, 2, 2)))
    for codes in ORIENTATIONS:
        other = sampled(shape, affine_of(shape, (2, 2, 2), codes))
        assert (codes == "RAS") == (np.abs(other - head).max() < 50)
