"""Overlap and sigma for each axis, and what lies outside: from a spec or a bundle to the card and the client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map

from tests.support.build_specs import CERTIFICATES, PROVENANCE, ROI, fields, spec, tiny_unet
from tests.support.bundles import inference, inferer, write_bundle
from tests.support.cards import card
from voxtile.card import Card, parse_card
from voxtile.errors import ModelError
from voxtile.tiling.plan import TilePlan, plan_tiles, tile_shape
from voxtile_build.errors import SpecError
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.repository.card import card_of, card_text
from voxtile_build.spec.spec import Spec, parse_spec

OVERLAP, SIGMA = [0.5, 0.0, 0.75], [0.1, 0.3, 0.2]
WEIGHTS = 1e-6
"""Both sides compute exp and products in float32."""


def client_card(chosen: Spec) -> Card:
    """The card that the client reads of an entry of this spec."""
    return parse_card(card_text(card_of(chosen, "openvino", CERTIFICATES, PROVENANCE)), "tiny")


def plan_of(found: Card, image: tuple[int, int, int]) -> TilePlan:
    return plan_tiles(image, tile_shape(found, image), found.tiling)


def test_each_axis_has_its_own_overlap_and_sigma() -> None:
    found = client_card(spec(tiling={"overlap": OVERLAP, "sigma_scale": SIGMA}))
    assert (found.tiling.overlap, found.tiling.sigma_scale) == (tuple(OVERLAP), tuple(SIGMA))
    plan = plan_of(found, (24, 16, 21))
    assert plan.starts == ((0, 8), (0, 8), (0, 3, 6, 9))
    expected = compute_importance_map(ROI, mode="gaussian", sigma_scale=SIGMA)
    np.testing.assert_allclose(plan.weights, expected.numpy(), rtol=WEIGHTS)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_of_a_2d_networks_slices_counts_for_nothing(axis: int) -> None:
    flat = {"roi_size": [16, 12], "slice_axis": axis, "overlap": [0.5, 0.25], "sigma_scale": [0.1, 0.3]}
    found = client_card(spec(tiling=flat))
    image = [24, 21]
    image.insert(axis, 5)
    plan = plan_of(found, (image[0], image[1], image[2]))
    starts = [(0, 8), (0, 9)]
    starts.insert(axis, (0, 1, 2, 3, 4))
    assert plan.starts == tuple(starts)
    expected = compute_importance_map((16, 12), mode="gaussian", sigma_scale=[0.1, 0.3])
    np.testing.assert_allclose(plan.weights.squeeze(axis), expected.numpy(), rtol=WEIGHTS)


@pytest.mark.parametrize("rule", [{"rule": "none"}, {"rule": "range", "a_min": 0.0, "a_max": 50.0}, {"rule": "zscore"}])
@pytest.mark.parametrize("cval", [0.0, -1.0, 2.5])
def test_the_network_sees_outside_after_normalisation(rule: dict[str, Any], cval: float) -> None:
    chosen = spec(input={"dtype": "int16", "intensity": rule}, tiling={"cval": cval})
    wrapper = wrap(tiny_unet(), chosen)
    roi = torch.randint(0, 100, (1, 1, *ROI), dtype=torch.int16)
    plain = wrapper.image(roi, torch.tensor([[[40.0, 20.0]]]) if rule["rule"] == "zscore" else None)
    roi[:, :, :5] = -32768
    seen = wrapper.image(roi, torch.tensor([[[40.0, 20.0]]]) if rule["rule"] == "zscore" else None)
    assert (seen[:, :, :5] == cval).all()
    assert torch.equal(seen[:, :, 5:], plain[:, :, 5:])


def test_a_bundles_own_numbers_are_translated(tmp_path: Path) -> None:
    given = inferer(overlap=[0.5, 0.25, 0], sigma_scale=[0.1, 0.2, 0.3], cval=-1)
    tiling = spec_of(write_bundle(tmp_path / "b", given), "each").tiling
    assert (tiling.overlap, tiling.sigma_scale, tiling.cval) == ((0.5, 0.25, 0.0), (0.1, 0.2, 0.3), -1.0)
    plain = spec_of(write_bundle(tmp_path / "p", inference()), "plain").tiling
    assert (plain.overlap, plain.sigma_scale, plain.cval) == (0.5, 0.125, 0.0)


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"overlap": [0.5, 0.25]}, r"overlap to have one number for each axis of roi_size, found \[0.5, 0.25\]"),
        ({"sigma_scale": [0.1] * 4}, "expected sigma_scale to have one number for each axis of roi"),
        ({"overlap": [0.5, 1.0, 0.0]}, r"tiling.overlap\[1\]: .*less than 1, found 1.0 \(overlap: share"),
        ({"overlap": -0.1}, r"tiling.overlap: .*greater than or equal to 0, found -0.1"),
        ({"sigma_scale": [0.1, 0.0, 0.1]}, r"tiling.sigma_scale\[1\]: .*greater than 0"),
        ({"sigma_scale": "wide"}, r"tiling.sigma_scale: .*found 'wide'"),
        ({"cval": float("inf")}, "tiling.cval: .*finite"),
        ({"semantics": "nnunet", "cval": -1.0}, "nnU-Net pads with 0 after normalisation, found cval = -1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_the_key(tiling: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_spec(fields(tiling=tiling), "tiny.toml", Path())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("overlap", [[0.5, 0.5], [0.5, 0.5, 1.0], [], "half"])
def test_a_card_with_another_count_is_refused(overlap: Any) -> None:
    with pytest.raises(ModelError, match=r"does not fit the schema at tiling\.overlap"):
        parse_card(json.dumps(card(tiling={"overlap": overlap})), "m")
