"""What is sent against what was meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.monai_cards import (
    PADDING,
    RANGE,
    ZSCORE,
    encoding_of,
    prepared_of,
    typed_card,
)
from voxtile.chains.monai.encoding import LARGEST
from voxtile.chains.monai.preprocess import preprocess
from voxtile.errors import InputError
from voxtile.io.volume import Volume


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32])
def test_whole_numbers_that_fit_are_sent_exactly_as_int16(dtype: Any) -> None:
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
