"""Preparing against MONAI's own chain; figures against NumPy; what travels against what was meant."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, Spacing
from numpy.typing import NDArray

from tests.support.phantoms import ORIENTATIONS, affine_of, card_of, in_file_order, phantom_volume, restored_as, sampled
from voxtile.card import Card
from voxtile.chains.monai import resample as resampling
from voxtile.chains.monai.encoding import LARGEST, Encoding, choose_encoding
from voxtile.chains.monai.grid import plan_grid, skewed
from voxtile.chains.monai.intensity import mean_and_deviation, percentiles
from voxtile.chains.monai.preprocess import Preprocessed, preprocess, preprocess_bytes
from voxtile.errors import InputError, MemoryLimitError
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


# Geometry against MONAI ------------------------------------------------------------------------------------


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


# Properties ------------------------------------------------------------------------------------------------


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
    grid = plan_grid(volume.affine, volume.shape, card_of(orientation=wanted))
    np.testing.assert_array_equal(grid.orientation.undo(grid.orientation.apply(volume.data)), volume.data)
    assert grid.orientation.apply(volume.data).shape[1:] == grid.oriented == grid.shape


def test_a_skewed_grid_keeps_its_skew_and_its_place() -> None:
    shape = (20, 18, 16)
    affine = affine_of(shape, (1.0, 1.0, 2.0), shear=0.25)
    assert skewed(affine)
    volume = Volume(in_file_order(sampled(shape, affine)[None]), affine, None, ("scan",))
    prepared = preprocess(volume, card_of(spacing=(1.5, 1.5, 1.5)))
    assert_shows_the_anatomy(prepared)
    assert skewed(prepared.grid.affine)


def test_the_prepared_affine_places_what_the_scan_showed() -> None:
    """Resampled intensities are those of the anatomy at the places that the new affine names, border apart."""
    volume = phantom_volume((30, 36, 32), (1.3, 1.2, 1.25), "PLS", OBLIQUE, np.float32)
    prepared = preprocess(volume, card_of(spacing=(1.0, 1.0, 1.0)))
    assert_shows_the_anatomy(prepared)


# Memory ----------------------------------------------------------------------------------------------------


def test_memory_is_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SLAB_BYTES", 1 << 20)
    volume = phantom_volume((128, 128, 60), (1.0, 1.0, 3.0))
    card = card_of(spacing=(1.0, 1.0, 1.0))
    predicted = preprocess_bytes(plan_grid(volume.affine, volume.shape, card), 1)
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


# Figures of the whole scan ---------------------------------------------------------------------------------


ZSCORE = {"rule": "zscore", "mask": "all"}
FIGURE_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32)


@pytest.mark.parametrize("dtype", FIGURE_TYPES)
@pytest.mark.parametrize("mask", ["all", "nonzero"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_zscore_figures_are_those_of_monai(dtype: Any, mask: str, spacing: Any) -> None:
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


@pytest.mark.parametrize("dtype", FIGURE_TYPES)
@pytest.mark.parametrize("mask", ["all", "nonzero"])
def test_percentile_figures_are_numpys(dtype: Any, mask: str) -> None:
    volume = phantom_volume((20, 22, 18), codes="SLP", dtype=dtype)
    rule = {"rule": "percentile", "lower": 0.5, "upper": 99.5, "mask": mask}
    figures = preprocess(volume, card_of(intensity=rule)).statistics
    values = volume.data[volume.data != 0] if mask == "nonzero" else volume.data
    low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
    assert figures is not None
    np.testing.assert_allclose(figures[0], (low, high - low), rtol=1e-6)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_percentiles_of_any_float32(values: list[float], percent: float) -> None:
    array = np.array(values, np.float32)
    expected = np.percentile(array.astype(np.float64), percent)
    np.testing.assert_allclose(percentiles(array, (percent,), False), [expected], rtol=1e-9, atol=1e-30)


def test_mean_and_deviation_lose_nothing_far_from_zero() -> None:
    """A sum of squares less the square of the sum would be wrong in its first digit here."""
    values = (1e7 + np.random.default_rng(0).integers(0, 3, 100_000)).astype(np.float32)
    mean, deviation = mean_and_deviation(values, nonzero=False)
    assert mean == pytest.approx(float(np.mean(values, dtype=np.float64)), rel=1e-12)
    assert deviation == pytest.approx(float(np.std(values, dtype=np.float64)), rel=1e-9)


@pytest.mark.parametrize("dtype", FIGURE_TYPES)
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


# What travels ----------------------------------------------------------------------------------------------


PADDING = {"int16": -32768.0, "fp16": -65504.0, "fp32": -3.4028234663852886e38}
RANGE = {"rule": "range", "a_min": -1000, "a_max": 1000}


def typed_card(dtype: str, **changes: Any) -> Card:
    return card_of(input={"dtype": dtype, "padding": PADDING[dtype]}, **changes)


def prepared_of(values: Any, dtype: Any, card: Card) -> Preprocessed:
    data = np.asarray(values, dtype).reshape(1, 1, 1, -1)
    return preprocess(Volume(data, np.eye(4), None, ("scan.nii",)), card)


def encoding_of(prepared: Preprocessed, card: Card) -> Encoding:
    return choose_encoding(prepared.data, prepared.statistics, card, prepared.names)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32])
def test_whole_numbers_that_fit_travel_exactly_as_int16(dtype: Any) -> None:
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.iinfo(np.int16)
    values = np.arange(max(info.min, -32767), min(info.max, 32767) + 1)
    for rule in ({"rule": "none"}, RANGE, ZSCORE):
        card = typed_card("int16", intensity=rule)
        prepared = prepared_of(values, dtype, card)
        encoding = encoding_of(prepared, card)
        sent = encoding.encode(prepared.data)
        assert sent.dtype == np.int16
        np.testing.assert_array_equal(sent.ravel(), values)
        assert encoding.max_rounding == 0


def test_int16_is_not_copied() -> None:
    card = typed_card("int16")
    prepared = prepared_of([1, -2, 3], np.int16, card)
    assert np.shares_memory(encoding_of(prepared, card).encode(prepared.data), prepared.data)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("int16", [0.0, 0.25, 1.0]), ("int16", [-1e6, 3.0, 2e5]), ("int16", [0, 65535, 7]), ("int16", [-32768, 0, 1]),
     ("fp16", [0, 1e5, -3e5]), ("fp32", [-3.4028234663852886e38, 0, 1])],
)  # fmt: skip
@pytest.mark.parametrize("rule", [ZSCORE, {"rule": "percentile", "lower": 0, "upper": 100}])
def test_rescaling_leaves_the_normalised_scan_as_it_was(dtype: str, values: list[float], rule: dict[str, Any]) -> None:
    card = typed_card(dtype, intensity=rule)
    prepared = prepared_of(values, np.float32, card)
    encoding = encoding_of(prepared, card)
    sent = encoding.encode(prepared.data).astype(np.float64)
    assert prepared.statistics is not None
    assert encoding.statistics is not None
    meant = (prepared.data.astype(np.float64) - prepared.statistics[0, 0]) / prepared.statistics[0, 1]
    got = (sent - encoding.statistics[0, 0]) / encoding.statistics[0, 1]
    np.testing.assert_allclose(got, meant, atol=1e-3)
    assert np.abs(sent).max() <= LARGEST[dtype]
    assert (sent != PADDING[dtype]).all()
    back = sent / encoding.scale[0]
    limit = encoding.max_rounding * 1.001 + 1e-12 * np.abs(back).max()
    assert np.abs(back - prepared.data).max() <= limit


def test_each_channel_has_its_own_scale() -> None:
    card = typed_card("int16", channels=("a", "b"), intensity=ZSCORE)
    data = np.stack([np.linspace(0, 1, 60), np.linspace(0, 1000, 60)]).reshape(2, 3, 4, 5).astype(np.float32)
    prepared = preprocess(Volume(data, np.eye(4), None, ("a", "b")), card)
    encoding = encoding_of(prepared, card)
    np.testing.assert_allclose(encoding.scale, [32000, 32])
    np.testing.assert_array_equal(np.abs(encoding.encode(prepared.data)).max(axis=(1, 2, 3)), [32000, 32000])


def test_fixed_rules_round_and_say_by_how_much() -> None:
    card = typed_card("int16", intensity=RANGE)
    prepared = prepared_of([0.0, 0.3, -1.4, 12.0], np.float32, card)
    encoding = encoding_of(prepared, card)
    np.testing.assert_array_equal(encoding.encode(prepared.data).ravel(), [0, 0, -1, 12])
    assert encoding.max_rounding == pytest.approx(0.4)


@pytest.mark.parametrize(
    "rule",
    [RANGE, {"rule": "fixed", "mean": [10], "std": [5], "lower": [-1000], "upper": [1000]}],
)
@pytest.mark.parametrize(("dtype", "source"), [("int16", np.int32), ("int16", np.float32), ("fp16", np.float32)])
def test_what_the_models_rule_cuts_may_be_cut_before(rule: dict[str, Any], dtype: str, source: Any) -> None:
    card = typed_card(dtype, intensity=rule)
    prepared = prepared_of([-100_000, -1000, 0, 999, 70_000], source, card)
    encoding = encoding_of(prepared, card)
    np.testing.assert_array_equal(encoding.encode(prepared.data).ravel(), [-1000, -1000, 0, 999, 1000])
    assert encoding.max_rounding == 0


@pytest.mark.parametrize(
    "rule",
    [{"rule": "none"}, RANGE | {"clip": False}, RANGE | {"a_max": 50_000}, {"rule": "fixed", "mean": [0], "std": [1]},
     {"rule": "fixed", "mean": [0], "std": [1], "lower": [0]}],
)  # fmt: skip
def test_what_would_change_the_result_is_refused(rule: dict[str, Any]) -> None:
    card = typed_card("int16", intensity=rule)
    prepared = prepared_of([0, 40_000, 60_000], np.int32, card)
    with pytest.raises(InputError, match=r"scan.nii: expected values within ±32767.*found 0 to 60000"):
        encoding_of(prepared, card)


def test_half_precision_reports_its_rounding() -> None:
    card = typed_card("fp16")
    prepared = prepared_of([1, 2048, 2049], np.int16, card)
    encoding = encoding_of(prepared, card)
    assert encoding.encode(prepared.data).dtype == np.float16
    assert encoding.max_rounding == 1


def test_a_few_extreme_voxels_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    card = typed_card("int16", intensity={"rule": "percentile", "lower": 5, "upper": 95})
    values: NDArray[np.float64] = np.append(np.random.default_rng(0).random(1000), 1e5)
    encoding_of(prepared_of(values, np.float32, card), card)
    assert "rounded by up to" in caplog.text
