"""A chain of steps against MONAI's own: the image that the network gets, and the labels that come back."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.monai_chains import first_activation, monai_image, monai_labels, smooth_scores
from tests.support.phantoms import card_of, phantom_volume
from voxtile.card import Card
from voxtile.chains.monai.prepared_scan import MonaiPreparedScan

FLOAT32_ROUNDING = 3e-6
"""Of the largest value: MONAI blends in float64 and sums in float32, the client the other way round."""

LPS = {"transform": "Orientation", "axcodes": "LPS"}
PIR = {"transform": "Orientation", "axcodes": "PIR"}
ARI = {"transform": "Orientation", "axcodes": "ARI"}
SPACING = {"transform": "Spacing", "pixdim": (1.5, 2.5, 1.25)}
CROP = {"transform": "CropForeground", "select_fn": "x > 300", "margin": (1, 0, 2)}
BEYOND = {**CROP, "margin": 40}
DIVISIBLE = {**CROP, "k_divisible": (8, 5, 1), "mode": "edge"}
PAD = {"transform": "SpatialPad", "spatial_size": (40, 33, -1), "value": -7.0}
PAD_END = {"transform": "DivisiblePad", "k": (7, 16, 0), "method": "end", "mode": "reflect"}
CENTRE = {"transform": "CenterSpatialCrop", "roi_size": (15, 100, 13)}
RESIZE = {"transform": "ResizeWithPadOrCrop", "spatial_size": (29, 12, 41)}
RANGE = {"transform": "ScaleIntensityRange", "a_min": 20, "a_max": 700.5, "b_min": -1, "b_max": 0.7, "clip": True}
ZSCORE = {"transform": "NormalizeIntensity", "nonzero": True, "channel_wise": True}
TOGETHER = {"transform": "NormalizeIntensity"}
HALF_GIVEN = {"transform": "NormalizeIntensity", "subtrahend": 33.3}
CLIP = {"transform": "ClipIntensityPercentiles", "lower": 2.5, "upper": 97, "channel_wise": True}
PERCENTILES = {
    "transform": "ScaleIntensityRangePercentiles", "lower": 5, "upper": 95, "b_min": -2, "b_max": 3, "relative": True,
}  # fmt: skip
UNSCALED = {"transform": "ScaleIntensityRangePercentiles", "lower": 1, "upper": 99.5, "channel_wise": True}
MINMAX = {"transform": "ScaleIntensity", "minv": -1, "maxv": 1, "channel_wise": True}
FACTOR = {"transform": "ScaleIntensity", "factor": -0.3}
THRESHOLD = {"transform": "ThresholdIntensity", "threshold": 400, "above": False, "cval": 99.9}
MASK = {"transform": "MaskIntensity", "select_fn": "x >= 250.5"}


def chain_card(steps: list[dict[str, Any]], channels: int = 1, **changes: Any) -> Card:
    names = tuple(f"c{number}" for number in range(channels))
    return card_of(orientation=None, preprocessing=steps, channels=names, **changes)


CHAINS = [
    [LPS, SPACING],
    [SPACING, LPS],
    [LPS, SPACING, CROP],
    [LPS, CROP, SPACING],
    [CROP, PIR, SPACING, LPS],
    [SPACING, PIR, BEYOND],
    [LPS, SPACING, {**BEYOND, "allow_smaller": True}],
    [DIVISIBLE, LPS, SPACING, DIVISIBLE],
    [PAD, SPACING, CENTRE],
    [SPACING, PAD, PIR, RESIZE],
    [RESIZE, LPS, PAD_END],
    [LPS, CENTRE, PAD, SPACING, CROP, PAD_END],
    [LPS, RANGE, ZSCORE],
    [CLIP, ZSCORE, CROP | {"select_fn": "x > 0.5"}],
    [SPACING, CROP, PERCENTILES, MINMAX],
    [UNSCALED, TOGETHER],
    [MASK, HALF_GIVEN, FACTOR],
    [THRESHOLD, CROP, TOGETHER, PAD],
    [ZSCORE | {"channel_wise": False}, FACTOR, MINMAX],
]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("steps", CHAINS, ids=lambda steps: "-".join(step["transform"][:6] for step in steps))
def test_the_image_is_monais(steps: list[dict[str, Any]], channels: int) -> None:
    volume = phantom_volume((24, 31, 27), codes="PSL", angles=(0, 0, 9.0), channels=channels)
    found = MonaiPreparedScan(volume, chain_card(steps, channels)).data
    expected = monai_image(volume, steps)[0]["image"].numpy()
    assert found.shape == expected.shape
    limit = FLOAT32_ROUNDING * float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("step", [RANGE, FACTOR, THRESHOLD, MASK, CLIP, UNSCALED, PERCENTILES, MINMAX, PAD, CROP])
def test_without_sums_every_value_is_monais_to_the_last_bit_or_two(step: dict[str, Any]) -> None:
    volume = phantom_volume((24, 31, 27), dtype=np.float32)
    found = MonaiPreparedScan(volume, chain_card([step])).data
    expected = monai_image(volume, [step])[0]["image"].numpy()
    np.testing.assert_array_max_ulp(np.asarray(found, np.float32), expected.astype(np.float32), maxulp=2)


def test_the_scan_itself_is_never_changed() -> None:
    volume = phantom_volume(dtype=np.float32)
    before = volume.data.copy()
    MonaiPreparedScan(volume, chain_card([LPS, CROP, RANGE, ZSCORE]))
    np.testing.assert_array_equal(volume.data, before)


def brought_back(scores: NDArray[np.float32], prepared: MonaiPreparedScan, planes: int) -> NDArray[Any]:
    sink = prepared.restorer(False)
    sink.start_strip(prepared.strips(1, 1)[0])
    for first in range(0, scores.shape[1], planes):
        sink.add_planes(scores[:, first : first + planes].copy())
    return sink.finish()


SOFTMAX = {"transform": "Activations", "softmax": True}
SIGMOID = {"transform": "Activations", "sigmoid": True}
LINEAR = {"transform": "Invert", "nearest_interp": False}
NEAREST = {"transform": "Invert", "nearest_interp": True}
ARGMAX = {"transform": "AsDiscrete", "argmax": True}
HALF = {"transform": "AsDiscrete", "threshold": 0.5}
OTHER = {"transform": "AsDiscrete", "threshold": 0.37}
LARGEST = {"transform": "KeepLargestConnectedComponent"}
LARGEST_TWO = {**LARGEST, "applied_labels": (2, 1), "num_components": 2, "connectivity": 1}
UNION = {**LARGEST, "independent": False, "applied_labels": (1, 2)}
HOLES = {"transform": "FillHoles", "connectivity": 1}
HOLES_OF_ONE = {"transform": "FillHoles", "applied_labels": (1,)}
SMALL = {"transform": "RemoveSmallObjects", "min_size": 9}
MILLIMETRES = {"transform": "RemoveSmallObjects", "min_size": 60, "by_measure": True, "independent_channels": False}
FILTER = {"transform": "LabelFilter", "applied_labels": (2,)}


FINISHES = [
    [ARGMAX],
    [SOFTMAX, LINEAR, ARGMAX],
    [SOFTMAX, NEAREST, ARGMAX],
    [LINEAR, SOFTMAX, ARGMAX, LARGEST],
    [ARGMAX, NEAREST],
    [SOFTMAX, ARGMAX, LARGEST_TWO, NEAREST],
    [ARGMAX, HOLES, NEAREST, LARGEST],
    [SOFTMAX, LINEAR, ARGMAX, UNION, HOLES_OF_ONE],
    [LINEAR, ARGMAX, SMALL],
    [LINEAR, ARGMAX, MILLIMETRES, FILTER],
    [ARGMAX, MILLIMETRES, NEAREST],
    [SIGMOID, LINEAR, HALF],
    [SIGMOID, LINEAR, OTHER],
    [LINEAR, SIGMOID, OTHER],
    [LINEAR, SIGMOID, HALF],
    [LINEAR, OTHER],
    [SIGMOID, LINEAR, HALF, LARGEST],
    [SIGMOID, LINEAR, OTHER, {**LARGEST, "applied_labels": (0, 2), "num_components": 3}, HOLES],
    [SIGMOID, HALF, UNION | {"applied_labels": [0, 1]}, NEAREST],
    [SIGMOID, HALF, NEAREST, SMALL],
    [SIGMOID, LINEAR, HALF, MILLIMETRES],
]
WAYS = [
    [LPS],
    [LPS, SPACING],
    [LPS, SPACING, CROP],
    [CROP, ARI, SPACING],
    [SPACING, PIR, BEYOND],
    [DIVISIBLE, PIR, SPACING, LPS, CENTRE, PAD_END],
]
TIES = 2e-4
"""Share of voxels whose scores are so near to one another that rounding decides."""


@pytest.mark.parametrize("way", WAYS, ids=lambda steps: "-".join(step["transform"][:6] for step in steps))
@pytest.mark.parametrize("after", FINISHES, ids=lambda steps: "-".join(step["transform"][:4] for step in steps))
def test_the_labels_are_monais(way: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    volume = phantom_volume((24, 31, 27), codes="PSL", angles=(0, 0, 9.0))
    regions = any(step.get("threshold") for step in after)
    card = chain_card(
        way,
        output={"kind": "logits", "scores": 3, "activation": first_activation(after)},
        labels=[{"name": name, "value": number + regions} for number, name in enumerate("abc")],
        regions=regions,
        postprocessing=after,
    )
    prepared = MonaiPreparedScan(volume, card)
    data, chain = monai_image(volume, way)
    scores = smooth_scores(data["image"].shape[1:], 3, seed=11)
    told = after if any(step["transform"] == "Invert" for step in after) else [LINEAR, *after]
    expected = monai_labels(scores, data, chain, told)
    found = brought_back(scores, prepared, planes=5)
    mask = expected[0] if not regions else np.max([(r + 1) * (one > 0) for r, one in enumerate(expected)], axis=0)
    assert found.shape == volume.shape
    changed = int((found != mask).sum())
    assert changed <= TIES * mask.size, f"{changed} of {mask.size} voxels, found {np.unique(found)}"
    assert len(np.unique(mask)) > 1


@given(st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_the_number_of_planes_that_come_at_once_changes_nothing(planes: int, seed: int) -> None:
    volume = phantom_volume((24, 31, 27), codes="PSL")
    card = chain_card([LPS, SPACING, CROP])
    prepared = MonaiPreparedScan(volume, card)
    scores = smooth_scores(prepared.data.shape[1:], 2, seed)
    np.testing.assert_array_equal(brought_back(scores, prepared, planes), brought_back(scores, prepared, 1000))


def test_kept_scores_are_zero_outside_the_crop() -> None:
    volume = phantom_volume((24, 31, 27), codes="PSL")
    way = [CROP, LPS, SPACING, CENTRE]
    prepared = MonaiPreparedScan(volume, chain_card(way))
    data, chain = monai_image(volume, way)
    scores = smooth_scores(data["image"].shape[1:], 2, seed=3)
    expected = monai_labels(scores, data, chain, [LINEAR])
    sink = prepared.restorer(True)
    sink.start_strip(prepared.strips(1, 1)[0])
    sink.add_planes(scores.copy())
    sink.finish()
    np.testing.assert_allclose(sink.scores, expected, atol=FLOAT32_ROUNDING * float(np.abs(scores).max()))
    assert (sink.scores == 0).all(axis=0).any()


@pytest.mark.parametrize(
    ("way", "after", "keep_scores"),
    [
        ([LPS, SPACING, CROP], [SOFTMAX, LINEAR, ARGMAX, LARGEST], False),
        ([LPS, SPACING, CROP], [SOFTMAX, LINEAR, ARGMAX, LARGEST], True),
        ([CROP, LPS, SPACING], [LINEAR, ARGMAX, UNION, HOLES], True),
        ([LPS, SPACING, DIVISIBLE, CENTRE], [SOFTMAX, ARGMAX, LARGEST, NEAREST, HOLES], False),
        ([LPS], [SIGMOID, LINEAR, OTHER, LARGEST], False),
    ],
)
def test_the_way_back_takes_no_more_than_it_says(way: list[Any], after: list[Any], keep_scores: bool) -> None:
    """Measured by Python's own count of NumPy's memory."""
    volume = phantom_volume((72, 60, 66), codes="PSL")
    regions = any(step.get("threshold") for step in after)
    card = chain_card(
        way,
        output={"kind": "logits", "scores": 3, "activation": first_activation(after)},
        labels=[{"name": name, "value": number + regions} for number, name in enumerate("abc")],
        regions=regions,
        postprocessing=after,
    )
    prepared = MonaiPreparedScan(volume, card)
    scores = smooth_scores(prepared.data.shape[1:], 3, seed=2)
    strip = prepared.strips(1, 1)[0]
    parts = [scores[:, first : first + 8].copy() for first in range(0, scores.shape[1], 8)]
    tracemalloc.start()
    sink = prepared.restorer(keep_scores)
    sink.start_strip(strip)
    for part in parts:
        sink.add_planes(part)
    sink.finish()
    if keep_scores:
        assert sink.scores.shape[1:] == volume.shape
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= prepared.restore_bytes(8, strip, keep_scores)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("way", [[CROP, LPS, SPACING], [LPS, CROP], [LPS, SPACING, CROP]])
def test_strips_change_no_label(way: list[Any], axis: int) -> None:
    """A crop before resampling is cut into strips; one after it stays in one."""
    volume = phantom_volume((24, 31, 27), codes="PSL", angles=(0, 0, 9.0))
    prepared = MonaiPreparedScan(volume, chain_card(way, postprocessing=[LINEAR, ARGMAX, LARGEST]))
    scores = smooth_scores(prepared.data.shape[1:], 2, seed=4)
    strips = prepared.strips(axis, 3)
    assert len(strips) == (1 if way[-1] is CROP and SPACING in way else 3)
    sink = prepared.restorer(False)
    for strip in strips:
        sink.start_strip(strip)
        rows = [slice(None)] * 4
        rows[strip.axis + 1] = slice(*strip.rows)
        sink.add_planes(scores[tuple(rows)].copy())
    np.testing.assert_array_equal(sink.finish(), brought_back(scores, prepared, 4))


def test_what_was_cut_away_is_not_kept_in_memory() -> None:
    volume = phantom_volume((24, 31, 27))
    small = {**CENTRE, "roi_size": 8}
    prepared = MonaiPreparedScan(volume, chain_card([SPACING, small]))
    assert prepared.data.base is None or prepared.data.base.nbytes == prepared.own_bytes == 4 * 8**3
    view = MonaiPreparedScan(volume, chain_card([small]))
    assert view.own_bytes == 0
    assert np.shares_memory(view.data, volume.data)


def test_whole_numbers_that_are_only_moved_are_sent_as_they_are() -> None:
    volume = phantom_volume((24, 31, 27), codes="PSL")
    rule = {"rule": "range", "a_min": 0, "a_max": 500}
    card = chain_card([LPS, CROP], intensity=rule, input={"dtype": "int16", "padding": -32768.0})
    prepared = MonaiPreparedScan(volume, card)
    expected = monai_image(volume, [LPS, CROP])[0]["image"].numpy()
    sent = prepared.encode(prepared.data)
    assert sent.dtype == np.int16
    np.testing.assert_array_equal(sent, expected)
