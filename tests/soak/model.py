"""The soak's model: it names for each voxel the nearest of four grey values.

Before that comes a convolution that costs time and changes nothing. All numbers are whole, so that the right mask is
known exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.soak.scans import GREYS, NAME
from tests.support.cards import card
from tests.support.tiny_entries import config, graph, write_entry
from voxtile.card import Card

ROI = (24, 24, 24)
WIDTH = 12
"""Channels of the convolution: what makes a tile take milliseconds."""

MAX_QUEUE = 3
"""Requests that the server queues at most; four clients send more."""


def write_model(repository: Path) -> None:
    """Writes the model's entry, with its card and a short queue."""
    described = Card.model_validate(
        card(
            name=NAME,
            intensity={"rule": "none"},
            orientation=None,
            spacing=None,
            roi_size=ROI,
            output={"kind": "logits", "dtype": "fp32", "scores": len(GREYS)},
            labels=[{"name": f"grey {grey}", "value": value} for value, grey in enumerate(GREYS)],
            engine="onnxruntime",
        )
    )
    written = config(
        NAME,
        "onnxruntime",
        [("roi", "TYPE_INT16", (1, *ROI))],
        [("scores", "TYPE_FP32", (len(GREYS), *ROI))],
        parameters={"card": described.model_dump_json()},
        dynamic_batching={"default_queue_policy": {"max_queue_size": MAX_QUEUE}},
    )
    write_entry(repository, written, network())


def network() -> ModelProto:
    """Scores 2 · grey · x - grey²: largest for the grey value that is nearest to x."""
    spread, gather = np.zeros((WIDTH, 1, 3, 3, 3), np.float32), np.zeros((1, WIDTH, 3, 3, 3), np.float32)
    spread[:, 0, 1, 1, 1], gather[0, 0, 1, 1, 1] = 1, 1
    greys = np.array(GREYS, np.float32).reshape(-1, 1, 1, 1)
    constants = {"spread": spread, "gather": gather, "slopes": 2 * greys, "offsets": greys**2}
    nodes = [
        helper.make_node("Cast", ["roi"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "spread"], ["wide"], pads=[1] * 6),
        helper.make_node("Conv", ["wide", "gather"], ["same"], pads=[1] * 6),
        helper.make_node("Mul", ["same", "slopes"], ["sloped"]),
        helper.make_node("Sub", ["sloped", "offsets"], ["scores"]),
    ]
    return graph(nodes, [("roi", "TYPE_INT16", (1, *ROI))], [("scores", "TYPE_FP32", (len(GREYS), *ROI))], constants)
