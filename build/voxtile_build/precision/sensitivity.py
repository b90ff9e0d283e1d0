"""Ranks the layers of a graph by how much reduced precision hurts them, without building an engine for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from voxtile_build.arrays import Array, Feed
from voxtile_build.precision.mixed_precision import COMPUTE, first_overflow, low_nodes, to_mixed
from voxtile_build.precision.quantize_qdq import quantizable
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.sessions import run_graph

STEPS = 127
"""Largest step of symmetric int8."""

SMALLEST_RANGE = 1e-12
"""Of an input that is zero throughout."""


def rank_fp16(model: onnx.ModelProto, inputs: Sequence[Feed], ranges: Mapping[str, float]) -> list[str]:
    """Convolutions and products, ordered by how much fp16 in this layer alone changes the scores, the largest first.

    A layer that overflows comes first. The graph is run node by node for each layer and input, which is slow: one tile
    with structure in it is enough.
    """
    low = low_nodes(model)
    layers = [node.name for node in model.graph.node if node.name in low and node.op_type in COMPUTE["fp16"]]
    reference = run_graph(model, inputs)

    def effect(layer: str) -> float:
        others = frozenset(low - {layer})
        if first_overflow(model, ranges, others):
            return math.inf
        return _mean_change(reference, run_stepwise(to_mixed(model, "fp16", others), inputs))

    return _largest_first(layers, effect)


def rank_int8(
    model: onnx.ModelProto, feed: Feed, ranges: Mapping[str, float], operators: Collection[str] = ("Conv",)
) -> list[str]:
    """Quantisable convolutions, ordered by how much int8 in this layer alone changes the scores, the largest first.

    Weights are rounded by the largest value of each channel, the input by its range. The graph is run once for each
    layer. Nodes must have names.
    """
    reference = run_graph(model, [feed])

    def effect(layer: str) -> float:
        return _mean_change(reference, run_graph(_with_rounded(model, layer, ranges), [feed]))

    return _largest_first(quantizable(model, operators=operators), effect)


def round_weights(weights: Array) -> Array:
    """Weights [output channel, …] rounded to symmetric int8, with one scale for each output channel."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scale = np.where(largest == 0, 1, largest / STEPS).reshape(-1, *(1,) * (weights.ndim - 1))
    rounded: Array = (np.rint(weights / scale) * scale).astype(weights.dtype)
    return rounded


def _largest_first(layers: Sequence[str], effect: Callable[[str], float]) -> list[str]:
    effects = {layer: effect(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -effects[layer])


def _mean_change(reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    changes = [
        float(np.mean(np.abs(np.subtract(old[name], new[name], dtype=np.float64))))
        for old, new in zip(reference, found, strict=True)
        for name in old
    ]
    change = float(np.mean(changes))
    return change if np.isfinite(change) else math.inf


def _with_rounded(model: onnx.ModelProto, layer: str, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A copy in which the convolution `layer` gets its input and its weights rounded to int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index, node = next((i, node) for i, node in enumerate(copy.graph.node) if node.name == layer)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    if node.input[1] in constants:
        name = f"{layer}::int8 weights"
        # [output channel, input channel, …]; the other way round in a transposed convolution.
        axis = 1 if node.op_type == "ConvTranspose" else 0
        stored = np.moveaxis(numpy_helper.to_array(constants[node.input[1]]), axis, 0)
        weights = np.ascontiguousarray(np.moveaxis(round_weights(stored), 0, axis))
        copy.graph.initializer.append(numpy_helper.from_array(weights, name))
        node.input[1] = name
    largest = max(ranges.get(node.input[0], 0.0), SMALLEST_RANGE)
    scale = numpy_helper.from_array(np.array(largest / STEPS, np.float32), f"{layer}::scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), f"{layer}::zero")
    copy.graph.initializer.extend([scale, zero])
    down, up = _round_trip(node.input[0], scale.name, zero.name)
    node.input[0] = up.output[0]
    for inserted in (up, down):
        copy.graph.node.insert(index, inserted)
    return copy


def _round_trip(source: str, scale: str, zero: str) -> tuple[NodeProto, NodeProto]:
    down, up = f"{source}::int8", f"{source}::back"
    return (
        helper.make_node("QuantizeLinear", [source, scale, zero], [down]),
        helper.make_node("DequantizeLinear", [down, scale, zero], [up]),
    )
