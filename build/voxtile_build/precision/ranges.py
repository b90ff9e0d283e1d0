"""The largest magnitude of every tensor in a graph, measured on calibration inputs."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from voxtile_build.arrays import Array, Feed
from voxtile_build.sessions import IN_ORDER_OF_USE, open_session

_EXTREMES = ("ReduceMin", "ReduceMax")


def tensor_ranges(model: onnx.ModelProto, inputs: Iterable[Feed]) -> dict[str, float]:
    """max |x| of each fp32 tensor by name: inputs, constants and everything computed between.

    The graph is run in fp32 with two scalars added per tensor, taken as soon as the tensor is there, so that memory
    does not grow with the number of tensors. A tensor that is not finite anywhere counts as infinite.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    ranges = {
        tensor.name: _magnitude(numpy_helper.to_array(tensor))
        for tensor in typed.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    names = _float_tensors(typed)
    # In any other order extremes are left for last, and every tensor is held until then.
    opened = open_session(_with_extremes(typed, names), order=IN_ORDER_OF_USE)
    outputs = [_output(extreme, name) for name in names for extreme in _EXTREMES]
    for feed in inputs:
        found = np.abs(np.array(opened.run(outputs, dict(feed)), dtype=np.float64)).reshape(-1, 2)
        for name, largest in zip(names, found.max(axis=1), strict=True):
            # Not max(): NaN must count as out of range, whichever side it stands on.
            known = ranges.get(name, 0.0)
            ranges[name] = max(known, float(largest)) if np.isfinite(largest) else float("inf")
    return ranges


def types_of(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element type of each tensor that is known, as TensorProto's number."""
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
    """The extremes of each tensor are computed right behind it, and are all that the graph gives."""
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
