"""int8 for transposed convolutions that are added to a convolution, as in the fused graph.

NNCF would round their inputs with an offset, for which OpenVINO computes them in bf16. For inputs without an offset it
has int8 transposed convolutions, which are fast if the sum ends in int8 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from voxtile_build.engines.openvino.core import core

OPERATOR = "ConvolutionBackpropData"
STEPS = 127
LEVELS = 256
SMALLEST = 1e-6
"""Minimum range, for tensors that are zero throughout."""


def quantize_upsampling(
    model: openvino.Model, calibration: Sequence[Mapping[str, NDArray[Any]]], kept: frozenset[str] = frozenset()
) -> int:
    """Rounds, in `model` itself, inputs, weights and sums of these transposed convolutions to int8.

    Args:
        model: the model, its constants folded.
        calibration: the model's inputs by name; ranges are the means of the smallest and largest values over them.
        kept: names (`get_friendly_name()`) of operations that stay as they are.

    Returns:
        How many were rounded.
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
    """Whether this is a transposed convolution with constant weights whose result is added to another tensor."""
    if node.get_type_name() != OPERATOR or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    if len(users) != 1 or users[0].get_type_name() != "Add":
        return False
    return all(value.get_node().get_type_name() != "Constant" for value in users[0].input_values())


def _ranges(
    model: openvino.Model, nodes: Sequence[Any], calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> list[NDArray[np.float64]]:
    """For each node [before and after, lowest and highest]."""
    probe = model.clone()
    by_name = {operation.get_friendly_name(): operation for operation in probe.get_ops()}
    first = len(probe.outputs)
    for node in nodes:
        twin = by_name[node.get_friendly_name()]
        for value in (twin.input_value(0), twin.output(0)):
            # Reduced in the graph, so that no whole tensor is an output.
            axes = opset13.constant(np.arange(len(value.get_partial_shape())))
            lowest, highest = (reduce(value, axes, True) for reduce in (opset13.reduce_min, opset13.reduce_max))
            probe.add_results([opset13.result(lowest), opset13.result(highest)])
    compiled = core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for feed in calibration:
        results = compiled(dict(feed))
        found.append([float(results[index].min()) for index in range(first, len(probe.outputs))])
    return list(np.mean(found, axis=0).reshape(len(nodes), 2, 2))


def _rounded(value: Any, lowest: float, highest: float) -> Any:
    """`value` in 256 steps without an offset; they begin at zero if less than a step lies below it."""
    if -lowest <= highest / (LEVELS - 1):
        low, high = 0.0, max(highest, SMALLEST)
    else:
        high = max(-lowest, highest, SMALLEST)
        low = -high * (STEPS + 1) / STEPS
    rank = len(value.get_partial_shape())
    ends = [opset13.constant(np.full([1] * rank, end, np.float32)) for end in (low, high)]
    return opset13.fake_quantize(value, *ends, *ends, LEVELS).output(0)


def _round_weights(node: Any) -> None:
    """Replaces weights [in, out, ...] by int8 and a scale for each output channel."""
    weights = np.array(node.input_value(1).get_node().get_data(), np.float32)
    largest = np.abs(weights).max(axis=tuple(axis for axis in range(weights.ndim) if axis != 1), keepdims=True)
    scale = np.where(largest == 0, 1, largest / STEPS).astype(np.float32)
    rounded = opset13.constant(np.rint(weights / scale).astype(np.int8))
    scaled = opset13.multiply(opset13.convert(rounded, np.float32), opset13.constant(scale))
    node.input(1).replace_source_output(scaled.output(0))
