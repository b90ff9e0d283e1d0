"""Small specs and the cards of their models. Needs no PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from voxtile.card import Card, Certificate, Provenance
from voxtile_build.repository.card import card_of
from voxtile_build.spec.spec import Spec, parse_spec

ROI = (16, 8, 12)

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "network": {
        "name": "UNet",
        "args": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]},
    },
    "input": {"channels": ["T1"]},
    "output": {"labels": ["background", "one", "two"]},
    "tiling": {"roi_size": list(ROI), "overlap": 0.25},
    "serving": {"max_batch_size": 2},
}


def fields(**changes: dict[str, Any] | Any) -> dict[str, Any]:
    """The fields of a small valid spec; tables in `changes` are merged into those of the same name."""
    result = copy.deepcopy(FIELDS)
    for key, value in changes.items():
        merged = {**result.get(key, {}), **value} if isinstance(value, dict) else value
        result[key] = merged
    return result


def spec(**changes: dict[str, Any] | Any) -> Spec:
    """A small spec with `changes`."""
    return parse_spec(fields(**changes), "tiny.toml", Path())


CERTIFICATES = {
    "openvino": Certificate(
        sha256="c" * 64, accepted=True, precision="fp32", dice_min=1.0, changed_fraction=0.0, max_abs_error=1e-6
    )
}
PROVENANCE = Provenance(network="UNet", weights_sha256="a" * 64, onnx_sha256="b" * 64, versions={"torch": "2"})


def built_card(**changes: dict[str, Any] | Any) -> Card:
    """The card of a small spec with `changes`, pointing to openvino."""
    return card_of(spec(**changes), "openvino", CERTIFICATES, PROVENANCE)
