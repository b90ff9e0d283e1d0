"""Statistics of the whole scan against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.monai_cards import (
    ZSCORE,
)
from tests.support.phantoms import (
    card_of,
    phantom_volume,
)
from voxtile.chains.monai.intensity import mean_and_deviation, percentiles
from voxtile.chains.monai.preprocess import preprocess
from voxtile.errors import InputError
from voxtile.io.volume import Volume

STORED_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32)


@pytest.mark.parametrize("dtype", STORED_TYPES)
@pytest.mark.parametrize("mask", ["all", "nonzero"])
def test_percentiles_are_numpys(dtype: Any, mask: str) -> None:
    volume = phantom_volume((20, 22, 18), codes="SLP", dtype=dtype)
    rule = {"rule": "percentile", "lower": 0.5, "upper": 99.5, "mask": mask}
    statistics = preprocess(volume, card_of(intensity=rule)).statistics
    values = volume.data[volume.data != 0] if mask == "nonzero" else volume.data
    low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
    assert statistics is not None
    np.testing.assert_allclose(statistics[0], (low, high - low), rtol=1e-6)


EPS = float(np.finfo(np.float64).eps)
RANK = 100 * EPS
"""Of the range of the values: the rounding of a rank up to 50, which a result near 0 suffers like any other."""


@example(values=[0.0, -3.0], percent=99.99999999999999)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_percentiles_of_any_float32(values: list[float], percent: float) -> None:
    array = np.array(values, np.float32)
    expected = np.percentile(array.astype(np.float64), percent)
    spread = np.ptp(array.astype(np.float64))
    np.testing.assert_allclose(percentiles(array, (percent,), False), [expected], rtol=4 * EPS, atol=RANK * spread)


def test_mean_and_deviation_lose_nothing_far_from_zero() -> None:
    """A sum of squares less the square of the sum would be wrong in its first digit here."""
    values = (1e7 + np.random.default_rng(0).integers(0, 3, 100_000)).astype(np.float32)
    mean, deviation = mean_and_deviation(values, nonzero=False)
    assert mean == pytest.approx(float(np.mean(values, dtype=np.float64)), rel=1e-12)
    assert deviation == pytest.approx(float(np.std(values, dtype=np.float64)), rel=1e-9)


@pytest.mark.parametrize("dtype", STORED_TYPES)
@pytest.mark.parametrize(
    ("rule", "value", "match"),
    [(ZSCORE, 7, "standard deviation of 0"), (ZSCORE | {"mask": "nonzero"}, 0, "voxels other than 0"),
     (ZSCORE, 0, "standard deviation of 0"),
     ({"rule": "percentile", "lower": 1, "upper": 99}, 7, "percentiles 1 and 99")],
)  # fmt: skip
def test_a_scan_without_contrast_is_refused(dtype: Any, rule: dict[str, Any], value: int, match: str) -> None:
    volume = Volume(np.full((1, 5, 6, 7), value, dtype), np.eye(4), None, ("scan.nii",))
    with pytest.raises(InputError, match=f"scan.nii: .*{match}"):
        preprocess(volume, card_of(intensity=rule))


def test_a_channel_is_named_in_messages() -> None:
    volume = Volume(np.zeros((2, 5, 6, 7), np.int16), np.eye(4), None, ("scan.nii",))
    with pytest.raises(InputError, match=r"scan.nii, channel 1: "):
        preprocess(volume, card_of(channels=("a", "b"), intensity=ZSCORE))
