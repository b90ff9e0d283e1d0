"""Measures the largest magnitude of every tensor in a graph on calibration inputs. Knows no engine."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from voxtile_build.arrays import Array, Feed
from voxtile_build.sessions import IN_ORDER_OF_USE, open_session

_EXTREMES = ("ReduceMin", "ReduceMax")


def tensor_ranges(model: onnx.ModelProto, inputs: Iterable[Feed]) -> dict[str, float]:
    """max |x| of each fp32 tensor by name: inputs, constants and all that is computed.

    A tensor with a value that is not finite counts as infinite. The graph is run in fp32 with two more scalars for each
    tensor, computed as soon as the tensor is there: memory does not grow with the number of tensors.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    ranges = {
        tensor.name: _magnitude(numpy_helper.to_array(tensor))
        for tensor in typed.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    names = _float_tensors(typed)
    # In another order the extremes would come last, and every tensor would be held until then.
    opened = open_session(_with_extremes(typed, names), order=IN_ORDER_OF_USE)
    outputs = [_output(extreme, name) for name in names for extreme in _EXTREMES]
    for feed in inputs:
        found = np.abs(np.array(opened.run(outputs, dict(feed)), dtype=np.float64)).reshape(-1, 2)
        for name, largest in zip(names, found.max(axis=1), strict=True):
            # Not max() alone: NaN must count as out of range.
            known = ranges.get(name, 0.0)
            ranges[name] = max(known, float(largest)) if np.isfinite(largest) else float("inf")
    return ranges


def types_of(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element type of each tensor whose type is known, as the number in TensorProto."""
    known = {
        value.name: value.type.tensor_type.elem_type
        for values in (model.graph.value_info, model.graph.input, model.graph.output)
        for value in values
    }
    return known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    types = types_of(model)
    computed = [name for node in model.graph.node for name in node.output if name]
    names = [value.name for value in model.graph.input] + computed
    constants = {tensor.name for tensor in model.graph.initializer}
    return [name for name in names if types.get(name) == TensorProto.FLOAT and name not in constants]


def _with_extremes(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy whose outputs are the extremes of each tensor; they are computed directly after the tensor."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.node[:], exposed.graph.output[:]
    exposed.graph.output.extend(
        helper.make_tensor_value_info(_output(extreme, name), TensorProto.FLOAT, [])
        for name in names
        for extreme in _EXTREMES
    )
    wanted = set(names)
    exposed.graph.node.extend(_extremes([value.name for value in model.graph.input], wanted))
    for node in model.graph.node:
        exposed.graph.node.append(node)
        exposed.graph.node.extend(_extremes(node.output, wanted))
    return exposed


def _extremes(names: Iterable[str], wanted: Collection[str]) -> list[onnx.NodeProto]:
    return [
        helper.make_node(extreme, [name], [_output(extreme, name)], keepdims=0)
        for name in names
        if name in wanted
        for extreme in _EXTREMES
    ]


def _output(extreme: str, name: str) -> str:
    return f"{name}::{extreme}"


def _magnitude(values: Array) -> float:
    largest = float(np.max(np.abs(values), initial=0.0))
    return largest if np.isfinite(largest) else float("inf")
