"""Which convolutions int8 hurts most, without calibrating an engine for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from voxtile_build.arrays import Array, Feed
from voxtile_build.precision.quantize_qdq import quantizable
from voxtile_build.sessions import run_graph

# Largest step of symmetric int8.
STEPS = 127


def rank_int8(
    model: onnx.ModelProto, feed: Feed, ranges: Mapping[str, float], operators: Collection[str] = ("Conv",)
) -> list[str]:
    """Quantisable convolutions, the one first that alone in int8 changes the scores of `feed` most.

    Each is rounded on its own, weights by their largest value a channel and the input by its range; one run of the
    graph a layer. Nodes must have names.
    """
    layers = quantizable(model, operators=operators)
    reference = run_graph(model, [feed])[0]["scores"].astype(np.float64)

    def effect(layer: str) -> float:
        found = run_graph(_with_rounded(model, layer, ranges), [feed])[0]["scores"]
        return float(np.mean(np.abs(found - reference)))

    effects = {layer: effect(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -effects[layer])


def _with_rounded(model: onnx.ModelProto, layer: str, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A copy in which the convolution `layer` sees its input and its weights as int8 would give them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index, node = next((i, node) for i, node in enumerate(copy.graph.node) if node.name == layer)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    if node.input[1] in constants:
        name = f"{layer}::int8 weights"
        # [output channel, input channel, …], turned around in a transposed convolution.
        axis = 1 if node.op_type == "ConvTranspose" else 0
        stored = np.moveaxis(numpy_helper.to_array(constants[node.input[1]]), axis, 0)
        weights = np.ascontiguousarray(np.moveaxis(round_weights(stored), 0, axis))
        copy.graph.initializer.append(numpy_helper.from_array(weights, name))
        node.input[1] = name
    largest = max(ranges.get(node.input[0], 0.0), 1e-12)
    scale = numpy_helper.from_array(np.array(largest / STEPS, np.float32), f"{layer}::scale")
    copy.graph.initializer.append(scale)
    zero = numpy_helper.from_array(np.array(0, np.int8), f"{layer}::zero")
    copy.graph.initializer.append(zero)
    pair = _round_trip(layer, node.input[0], scale.name, zero.name)
    node.input[0] = pair[-1].output[0]
    for offset, inserted in enumerate(pair):
        copy.graph.node.insert(index + offset, inserted)
    return copy


def _round_trip(layer: str, source: str, scale: str, zero: str) -> Sequence[NodeProto]:
    down, up = f"{layer}::int8", f"{layer}::back"
    return (
        helper.make_node("QuantizeLinear", [source, scale, zero], [down], name=down),
        helper.make_node("DequantizeLinear", [down, scale, zero], [up], name=up),
    )


def round_weights(weights: Array) -> Array:
    """Weights [output channel, …] rounded to symmetric int8, a scale each output channel."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scale = np.where(largest == 0, 1, largest / STEPS).reshape(-1, *(1,) * (weights.ndim - 1))
    rounded: Array = (np.rint(weights / scale) * scale).astype(weights.dtype)
    return rounded
