"""A scan prepared for an nnU-Net model: what it refuses before any work, and the axes in which nnU-Net reads it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.support.nnunet_plans import plan_json
from tests.support.phantoms import card_of, phantom_volume
from voxtile.card import Card
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.chains.prepare import prepare_scan
from voxtile.errors import InputError, MissingExtraError, ModelError
from voxtile.io.volume import Volume

PADDING = {"fp32": -3.4028234663852886e38, "fp16": -65504.0, "int16": -32768.0}
SHAPE, SPACING = (12, 15, 11), (1.0, 1.0, 1.5)


def nnunet_card(dtype: str = "fp32", **changes: Any) -> Card:
    plan = plan_json(n_labels=2, **changes)
    return card_of(orientation=None, input={"dtype": dtype, "padding": PADDING[dtype]}, nnunet=plan)


def test_the_chain_of_the_card_is_chosen() -> None:
    prepared = prepare_scan(phantom_volume(SHAPE, SPACING), nnunet_card())
    assert isinstance(prepared, NnunetPreparedScan)
    assert prepared.data.dtype == np.float32
    assert prepared.data.shape == (1, *SHAPE[::-1])
    assert prepared.own_bytes == prepared.data.nbytes


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_only_the_reader_that_reorients_turns_a_scan_to_ras(codes: str) -> None:
    """In nnU-Net's axes, which are the reader's in reverse order."""
    schemes = {"normalization_schemes": ["NoNormalization"], "spacing": [1.0, 1.0, 1.0]}
    volume = phantom_volume(SHAPE, (1.0, 1.0, 1.0), codes)
    plain = prepare_scan(volume, nnunet_card(**schemes)).data
    turned = prepare_scan(volume, nnunet_card(image_reader_writer="NibabelIOWithReorient", **schemes)).data
    np.testing.assert_array_equal(plain[0], volume.data[0].T)
    np.testing.assert_array_equal(turned[0], volume.towards("RAS").apply(volume.data[0]).T)


def test_values_that_half_precision_cannot_hold_are_refused() -> None:
    volume = phantom_volume(SHAPE, SPACING)
    card = nnunet_card("fp16", normalization_schemes=["NoNormalization"])
    assert np.isfinite(prepare_scan(volume, card).encode(volume.data.astype(np.float32))).all()
    bright = Volume(volume.data.astype(np.float32) * 100, volume.affine, volume.header, ("bright.nii",))
    with pytest.raises(InputError, match=r"bright.nii: expected normalised values between ±65504.*input type fp32"):
        prepare_scan(bright, card)


def test_normalised_values_are_not_sent_as_integers() -> None:
    with pytest.raises(ModelError, match="cannot be sent as int16; build it with fp32"):
        prepare_scan(phantom_volume(SHAPE, SPACING), nnunet_card("int16"))


def test_a_plan_that_is_not_understood_is_refused_by_its_key() -> None:
    with pytest.raises(ModelError, match="transpose_forward"):
        prepare_scan(phantom_volume(SHAPE, SPACING), nnunet_card(transpose_forward=[0, 0, 1]))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    message = r"the nnU-Net model 'phantom' needs scipy.*pip install 'voxtile\[nnunet\]'"
    with pytest.raises(MissingExtraError, match=message):
        prepare_scan(phantom_volume(SHAPE, SPACING), nnunet_card())
