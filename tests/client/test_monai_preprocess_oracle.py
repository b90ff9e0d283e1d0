"""Preparing against MONAI's own chain."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRangePercentiles, Spacing

from tests.support.phantoms import (
    ORIENTATIONS,
    card_of,
    phantom_volume,
)
from voxtile.card import Card
from voxtile.chains.monai.preprocess import preprocess
from voxtile.errors import InputError
from voxtile.io.volume import Volume

OBLIQUE = (14.0, -27.0, 33.0)

FLOAT32_ROUNDING = 1e-6
"""Of the largest value: MONAI blends in float64 and rounds once, the client blends in float32, three times."""


def monai_prepared(volume: Volume, card: Card) -> Any:
    """The MetaTensor [channel, x, y, z] that MONAI's own transforms make."""
    image = MetaTensor(torch.as_tensor(volume.data.astype(np.float32)), affine=torch.as_tensor(volume.affine))
    steps: list[Any] = []
    if card.orientation:
        steps.append(Orientation(card.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))))
    if card.spacing:
        steps.append(Spacing(card.spacing, mode="bilinear", padding_mode="border", dtype=np.float64))
    return Compose(steps)(image)


def assert_monais(volume: Volume, card: Card) -> None:
    found, expected = preprocess(volume, card), monai_prepared(volume, card)
    assert found.data.shape == tuple(expected.shape)
    np.testing.assert_allclose(found.grid.affine, expected.affine.numpy(), atol=1e-9)
    limit = FLOAT32_ROUNDING * float(np.abs(volume.data).max())
    np.testing.assert_allclose(found.data, expected.numpy(), rtol=0, atol=limit)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), OBLIQUE])
def test_orientation_and_spacing_are_monais(codes: str, angles: tuple[float, float, float]) -> None:
    volume = phantom_volume((12, 15, 11), (2.0, 1.5, 1.7), codes, angles)
    assert_monais(volume, card_of(spacing=(1.0, 2.0, 2.5)))


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL", "ARI"])
def test_any_orientation_may_be_the_models(codes: str) -> None:
    assert_monais(phantom_volume(angles=OBLIQUE), card_of(orientation=codes, spacing=(1.1, 0.9, 3.0)))


sizes, steps = st.integers(2, 14), st.sampled_from((0.5, 0.7, 0.9766, 1.0, 1.5, 2.0, 3.0, 5.0))

degrees = st.one_of(st.just(0.0), st.floats(-40, 40))


@given(
    st.tuples(sizes, sizes, sizes), st.tuples(steps, steps, steps), st.sampled_from(ORIENTATIONS),
    st.tuples(degrees, degrees, degrees), st.tuples(steps, steps, steps), st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_any_grid_is_monais(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    angles: tuple[float, float, float],
    target: tuple[float, float, float],
    rounded: bool,
) -> None:
    """Also where float32 affines hide which corner comes first, and where a size falls on a half."""
    volume = phantom_volume(shape, spacing, codes, angles)
    affine = volume.affine.astype(np.float32).astype(np.float64) if rounded else volume.affine
    assert_monais(Volume(volume.data, affine, volume.header, volume.names), card_of(spacing=target))


@pytest.mark.parametrize("size", range(2, 40))
def test_sizes_that_fall_on_a_half_are_rounded_as_monai_rounds_them(size: int) -> None:
    assert_monais(phantom_volume((size, 4, 5), (1.0, 1.0, 1.0)), card_of(spacing=(2.0, 1.0, 1.0)))


def test_spacing_within_monais_tolerance_is_left_alone() -> None:
    volume = phantom_volume((10, 11, 12), (1.0005, 0.9995, 2.0))
    prepared = preprocess(volume, card_of(spacing=(1.0, 1.0, 2.0)))
    assert not prepared.grid.resampled
    assert np.shares_memory(prepared.data, volume.data)
    assert_monais(volume, card_of(spacing=(1.0, 1.0, 2.0)))


@pytest.mark.parametrize("off", [0.0011, -0.0011, 0.002, -0.005, 0.0099])
def test_spacing_beyond_monais_tolerance_is_resampled(off: float) -> None:
    """However little: the last of a hundred voxels lies elsewhere."""
    volume, card = phantom_volume((100, 5, 4), (1.0 + off, 1.0, 2.0)), card_of(spacing=(1.0, 1.0, 2.0))
    assert preprocess(volume, card).grid.resampled
    assert_monais(volume, card)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("value", [0, 7, -300])
@pytest.mark.parametrize("mask", ["all", "nonzero"])
def test_a_channel_without_contrast_beside_others_is_as_in_monai(dtype: Any, value: int, mask: str) -> None:
    volume = phantom_volume((10, 12, 8), dtype=dtype, channels=3)
    volume.data[1] = value
    if mask == "nonzero":
        volume.data[1, :4] = 0  # a constant inside a background
    prepared = preprocess(volume, card_of(channels=("a", "b", "c"), intensity={"rule": "zscore", "mask": mask}))
    normalise = NormalizeIntensity(nonzero=mask == "nonzero", channel_wise=True)
    expected = normalise(torch.as_tensor(prepared.data.astype(np.float32))).numpy()
    assert prepared.statistics is not None
    subtract, divide = prepared.statistics.T[:, :, None, None, None]
    found = (prepared.data - subtract) / divide
    if mask == "nonzero":
        found[prepared.data == 0] = 0
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("outlier", [False, True])
def test_a_channel_without_a_range_of_percentiles_is_as_in_monai(outlier: bool) -> None:
    volume = phantom_volume((10, 12, 8), channels=2)
    volume.data[1] = 7
    volume.data[1, 3, 4, 5] = 90 if outlier else 7
    rule = {"rule": "percentile", "lower": 1, "upper": 99}
    prepared = preprocess(volume, card_of(channels=("a", "b"), intensity=rule))
    scale = ScaleIntensityRangePercentiles(1, 99, 0, 1, channel_wise=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, of a division that it leaves out
        expected = scale(torch.as_tensor(prepared.data.astype(np.float32))).numpy()
    assert prepared.statistics is not None
    subtract, divide = prepared.statistics.T[:, :, None, None, None]
    np.testing.assert_allclose((prepared.data - subtract) / divide, expected, atol=2e-5)
    if outlier:  # MONAI does not clip such a channel, and the model would
        with pytest.raises(InputError, match="percentiles 1 and 99"):
            preprocess(volume, card_of(channels=("a", "b"), intensity={**rule, "clip": True}))


STORED_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32)


@pytest.mark.parametrize("dtype", STORED_TYPES)
@pytest.mark.parametrize("mask", ["all", "nonzero"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_zscore_statistics_are_those_of_monai(dtype: Any, mask: str, spacing: Any) -> None:
    volume = phantom_volume((20, 22, 18), codes="LPI", dtype=dtype, channels=2)
    card = card_of(channels=("a", "b"), spacing=spacing, intensity={"rule": "zscore", "mask": mask})
    prepared = preprocess(volume, card)
    assert_monais(volume, card)
    # On the client's own grid: MONAI's has rounding errors where there is background, and counts them as signal.
    normalise = NormalizeIntensity(nonzero=mask == "nonzero", channel_wise=True)
    expected = normalise(torch.as_tensor(prepared.data.astype(np.float32)))
    assert prepared.statistics is not None
    subtract, divide = prepared.statistics[:, 0], prepared.statistics[:, 1]
    found = (prepared.data - subtract[:, None, None, None]) / divide[:, None, None, None]
    if mask == "nonzero":
        found[prepared.data == 0] = 0
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
