"""Preparing as MONAI does, however a scan is stored, and what it takes. Equality is in the oracle."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.monai_grids import model_grid
from tests.support.phantoms import (
    ORIENTATIONS,
    affine_of,
    card_of,
    in_file_order,
    phantom_volume,
    restored_as,
    sampled,
)
from voxtile.chains.monai import resample as resampling
from voxtile.chains.monai.preprocess import Preprocessed, preprocess
from voxtile.errors import MemoryLimitError
from voxtile.io.volume import Volume

OBLIQUE = (14.0, -27.0, 33.0)


def test_one_axis_is_resampled_and_the_others_pass_exactly() -> None:
    volume = phantom_volume((10, 11, 12), (1.0, 1.0, 4.0))
    prepared = preprocess(volume, card_of(spacing=(1.0, 1.0, 2.0)))
    np.testing.assert_array_equal(prepared.data[..., ::2], volume.data)


def assert_shows_the_anatomy(prepared: Preprocessed) -> None:
    """Interpolation rounds peaks off; the same data half a voxel elsewhere would be wrong several times as much."""
    inner = (slice(3, -3),) * 3
    shifted = prepared.grid.affine.copy()
    shifted[:3, 3] += 0.5 * shifted[:3, 0]
    error, other = (
        np.abs(prepared.data[0] - sampled(prepared.grid.shape, place))[inner].mean()
        for place in (prepared.grid.affine, shifted)
    )
    assert error < 0.3 * other


@pytest.mark.parametrize("codes", ["LPS", "LAS", "SAR", "IPL"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), OBLIQUE])
@pytest.mark.parametrize("spacing", [None, (1.4, 1.4, 1.4)])
def test_the_same_anatomy_prepares_to_the_same_array(
    codes: str, angles: tuple[float, float, float], spacing: tuple[float, float, float] | None
) -> None:
    shape = (13, 16, 12)
    affine = affine_of(shape, (2.0, 1.5, 1.7), "RAS", angles)
    data = np.rint(sampled(shape, affine)).astype(np.int16)
    card = card_of(spacing=spacing)
    both = []
    for stored, place in ((data, affine), restored_as(data, affine, codes)):
        volume = phantom_volume()
        both.append(preprocess(Volume(in_file_order(stored[None]), place, volume.header, ("scan",)), card))
    first, second = both
    np.testing.assert_allclose(first.data, second.data, atol=1e-3)
    np.testing.assert_allclose(first.grid.affine, second.grid.affine, atol=1e-9)


def test_nothing_is_copied_where_nothing_is_resampled() -> None:
    volume = phantom_volume(codes="LPS", channels=3)
    prepared = preprocess(volume, card_of(channels=("a", "b", "c")))
    assert prepared.data.dtype == np.int16
    assert np.shares_memory(prepared.data, volume.data)
    np.testing.assert_array_equal(prepared.data, volume.data[:, ::-1, ::-1])


def test_without_an_orientation_the_scan_stays_as_stored() -> None:
    volume = phantom_volume(codes="SPR")
    np.testing.assert_array_equal(preprocess(volume, card_of(orientation=None)).data, volume.data)


@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS))
@settings(max_examples=60, deadline=None)
def test_turning_and_turning_back_is_nothing(stored: str, wanted: str) -> None:
    volume = phantom_volume((5, 6, 7), codes=stored)
    grid = model_grid(volume.affine, volume.shape, card_of(orientation=wanted))
    np.testing.assert_array_equal(grid.orientation.undo(grid.orientation.apply(volume.data)), volume.data)
    assert grid.orientation.apply(volume.data).shape[1:] == grid.oriented == grid.shape


def test_a_skewed_grid_is_straightened_and_keeps_its_place() -> None:
    shape = (20, 18, 16)
    affine = affine_of(shape, (1.0, 1.0, 2.0), shear=0.25)
    volume = Volume(in_file_order(sampled(shape, affine)[None]), affine, None, ("scan",))
    prepared = preprocess(volume, card_of(spacing=(1.5, 1.5, 1.5)))
    np.testing.assert_allclose(prepared.grid.affine[:3, :3], np.diag([1.5, 1.5, 1.5]), atol=1e-12)
    voxels = np.indices(prepared.grid.shape).reshape(3, -1)
    onto = np.linalg.solve(affine, prepared.grid.affine)
    places = onto[:3, :3] @ voxels + onto[:3, 3:]
    inside = ((places > 2) & (places < np.array(shape)[:, None] - 3)).all(axis=0)
    error = np.abs(prepared.data[0] - sampled(prepared.grid.shape, prepared.grid.affine)).ravel()[inside]
    assert inside.mean() > 0.2
    assert error.mean() < 2  # of values up to 1000


def test_the_prepared_affine_places_what_the_scan_showed() -> None:
    """Resampled intensities are those of the anatomy at the places that the new affine names, border apart."""
    volume = phantom_volume((30, 36, 32), (1.3, 1.2, 1.25), "PLS", OBLIQUE, np.float32)
    prepared = preprocess(volume, card_of(spacing=(1.0, 1.0, 1.0)))
    assert_shows_the_anatomy(prepared)


def test_memory_is_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SLAB_BYTES", 1 << 20)
    volume = phantom_volume((128, 128, 60), (1.0, 1.0, 3.0))
    card = card_of(spacing=(1.0, 1.0, 1.0))
    predicted = resampling.resample_bytes(model_grid(volume.affine, volume.shape, card).maps, 1)
    tracemalloc.start()
    prepared = preprocess(volume, card)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prepared.data.nbytes < peak < predicted < 2 * prepared.data.nbytes


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    volume = phantom_volume((20, 20, 20), (900.0, 900.0, 900.0))
    with pytest.raises(MemoryLimitError, match=r"900 × 900 × 900 mm makes 17101 × 17101 × 17101 voxels.*0.50 GiB"):
        preprocess(volume, card_of(spacing=(1.0, 1.0, 1.0)), max_bytes=1 << 29)
    monstrous = phantom_volume((20, 20, 20), (999.0, 999.0, 999.0))
    with pytest.raises(MemoryLimitError, match=r"(this|no) machine"):
        preprocess(monstrous, card_of(spacing=(0.01, 0.01, 0.01)))
