"""A card's fields, to change and to validate."""

from __future__ import annotations

from typing import Any

from voxtile.card import SCHEMA_VERSION


def card(**changes: Any) -> dict[str, Any]:
    """The fields of a small valid card: one channel, RAS, z-score, two classes as logits; `changes` replace some."""
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": "model",
        "channels": ["T1"],
        "orientation": "RAS",
        "spacing": [1.0, 1.0, 1.0],
        "intensity": {"rule": "zscore", "mask": "nonzero"},
        "roi_size": [32, 32, 32],
        "input": {"dtype": "int16", "padding": -32768},
        "output": {"kind": "logits", "dtype": "fp32", "scores": 2},
        "labels": [{"name": "background", "value": 0}, {"name": "tissue", "value": 1}],
        "tiling": {"semantics": "monai", "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125},
        "engine": "openvino",
        "certificates": {},
        "provenance": {"network": "UNet", "weights_sha256": "0", "onnx_sha256": "1"},
    }
    return {**fields, **changes}
