"""int8 for OpenVINO's transposed convolutions that are added to a convolution, as composing upsampling leaves them.

NNCF would round their inputs off zero, and OpenVINO then computes them in bf16: it has int8 transposed convolutions for
inputs without an offset, and they are fast where the sum ends in int8 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

OPERATOR = "ConvolutionBackpropData"
STEPS = 127
LEVELS = 256
# Of a range, where everything is zero.
SMALLEST = 1e-6


def quantize_upsampling(
    model: openvino.Model, calibration: Sequence[Mapping[str, NDArray[Any]]], kept: frozenset[str] = frozenset()
) -> int:
    """Rounds, in `model` itself, inputs, weights and sums of these transposed convolutions to int8; returns how many.

    Constants are folded, so that a bias is one. Ranges are the means of the smallest and largest values over
    `calibration` (the model's inputs by name). `kept` names operations (`get_friendly_name()`) that stay.
    """
    nodes = [
        node for node in model.get_ordered_ops() if is_half_of_a_sum(node) and node.get_friendly_name() not in kept
    ]
    ranges = _ranges(model, nodes, calibration) if nodes else []
    for node, (before, after) in zip(nodes, ranges, strict=True):
        _round_weights(node)
        users = node.output(0).get_target_inputs()
        node.input(0).replace_source_output(_rounded(node.input_value(0), *before))
        result = _rounded(node.output(0), *after)
        for user in users:
            user.replace_source_output(result)
    model.validate_nodes_and_infer_types()
    return len(nodes)


def is_half_of_a_sum(node: Any) -> bool:
    """Whether this is a transposed convolution of known weights, and its result is added to another tensor."""
    if node.get_type_name() != OPERATOR or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    if len(users) != 1 or users[0].get_type_name() != "Add":
        return False
    return all(value.get_node().get_type_name() != "Constant" for value in users[0].input_values())


def _ranges(
    model: openvino.Model, nodes: Sequence[Any], calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> list[NDArray[np.float64]]:
    """[before and after, lowest and highest] of each node."""
    probe = model.clone()
    by_name = {operation.get_friendly_name(): operation for operation in probe.get_ops()}
    first = len(probe.outputs)
    for node in nodes:
        twin = by_name[node.get_friendly_name()]
        for value in (twin.input_value(0), twin.output(0)):
            # Reduced here: no tensor of the network is kept.
            axes = opset13.constant(np.arange(len(value.get_partial_shape())))
            lowest, highest = (reduce(value, axes, True) for reduce in (opset13.reduce_min, opset13.reduce_max))
            probe.add_results([opset13.result(lowest), opset13.result(highest)])
    compiled = openvino.Core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for feed in calibration:
        results = compiled(dict(feed))
        found.append([float(results[index].min()) for index in range(first, len(probe.outputs))])
    return list(np.mean(found, axis=0).reshape(len(nodes), 2, 2))


def _rounded(value: Any, lowest: float, highest: float) -> Any:
    """`value` in 256 steps without an offset: from zero where what lies below it is less than a step."""
    if -lowest <= highest / (LEVELS - 1):
        low, high = 0.0, max(highest, SMALLEST)
    else:
        high = max(-lowest, highest, SMALLEST)
        low = -high * (STEPS + 1) / STEPS
    rank = len(value.get_partial_shape())
    ends = [opset13.constant(np.full([1] * rank, end, np.float32)) for end in (low, high)]
    return opset13.fake_quantize(value, *ends, *ends, LEVELS).output(0)


def _round_weights(node: Any) -> None:
    """Weights [in, out, ...] as int8 and a scale for each output channel."""
    weights = np.array(node.input_value(1).get_node().get_data(), np.float32)
    largest = np.abs(weights).max(axis=tuple(axis for axis in range(weights.ndim) if axis != 1), keepdims=True)
    scale = np.where(largest == 0, 1, largest / STEPS).astype(np.float32)
    rounded = opset13.constant(np.rint(weights / scale).astype(np.int8))
    scaled = opset13.multiply(opset13.convert(rounded, np.float32), opset13.constant(scale))
    node.input(1).replace_source_output(scaled.output(0))
