"""Two models whose masks are known in advance, for the gateway's page: one scan, and two channels that differ.

Needs no PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.support import tiny_entries as tiny
from tests.support.cards import card

MIDDLE, BRIGHT = 200.0, 450.0
"""What `levels` cuts at: "egg" above the one, "lesion" above the other."""

ROI = (16, 24, 20)


def write_page_models(repository: Path) -> None:
    """Write `levels` (T1; egg, lesion) and `two-channels` (T1, T2; of the first, of the second) into a repository."""
    _write(
        repository, "levels", ["T1"], ["egg", "lesion"], [[0], [1], [2]], [0, -MIDDLE, -MIDDLE - BRIGHT],
    )  # fmt: skip
    _write(
        repository, "two-channels", ["T1", "T2"], ["of the first", "of the second"],
        [[0, 0], [1, 0], [0, 1]], [0, -MIDDLE, -MIDDLE],
    )  # fmt: skip


def _write(
    repository: Path, name: str, channels: list[str], labels: list[str], weights: list[list[float]], biases: list[float]
) -> None:
    """An entry with a card, whose scores are weights · channels + biases."""
    described = card(
        name=name,
        title=f"what {name} marks",
        channels=channels,
        orientation=None,
        spacing=None,
        intensity={"rule": "none"},
        roi_size=ROI,
        input={"dtype": "fp32", "padding": 0.0},
        output={"kind": "logits", "dtype": "fp32", "scores": len(weights)},
        labels=[{"name": label, "value": value} for value, label in enumerate(["background", *labels])],
        engine="onnxruntime",
    )
    taken = [("roi", "TYPE_FP32", (len(channels), *ROI))]
    given = [("scores", "TYPE_FP32", (len(weights), *ROI))]
    parameters = {"card": json.dumps(described)}
    written = tiny.config(name, "onnxruntime", taken, given, parameters=parameters)
    tiny.write_entry(repository, written, _mixing(weights, biases, taken, given))


def _mixing(
    weights: list[list[float]], biases: list[float], taken: list[tiny.Tensor], given: list[tiny.Tensor]
) -> onnx.ModelProto:
    constants = {
        "weights": np.array(weights, np.float32)[..., None, None, None],
        "biases": np.array(biases, np.float32),
    }
    return tiny.graph([helper.make_node("Conv", ["roi", "weights", "biases"], ["scores"])], taken, given, constants)
