"""Runs a graph node by node, so that each value is rounded to the type that the graph gives it.

Engines on a CPU compute fp16 in fp32 and remove the casts (ONNX Runtime at every optimisation level, OpenVINO too).
They show neither the rounding nor the overflow of a GPU.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper

from voxtile_build.arrays import Array, Feed
from voxtile_build.precision.ranges import types_of
from voxtile_build.sessions import open_session


def run_stepwise(model: onnx.ModelProto, inputs: Sequence[Feed]) -> list[dict[str, Array]]:
    """Outputs by name, for each feed. Only fp32 and fp16, because NumPy has no bf16.

    It is much slower than `run_graph`, because each node is opened by itself. Memory holds only what later nodes read.
    """
    types = types_of(onnx.shape_inference.infer_shapes(model))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    values = [dict(feed) for feed in inputs]
    wanted = [output.name for output in model.graph.output]
    readers = Counter(name for node in model.graph.node for name in {*node.input} - constants.keys())
    readers.update(wanted)
    for node in model.graph.node:
        opened = open_session(_single(model, node, types, constants))
        names = [name for name in node.output if name]
        read = {*node.input} - constants.keys() - {""}
        for known in values:
            found = opened.run(names, {name: known[name] for name in read})
            known.update(zip(names, found, strict=True))
        readers.subtract(read)
        _forget(values, [name for name in read if not readers[name]])
    tensors = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items() if name in wanted}
    return [{name: (tensors | known)[name] for name in wanted} for known in values]


def _single(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    types: Mapping[str, int],
    constants: Mapping[str, onnx.TensorProto],
) -> onnx.ModelProto:
    read = dict.fromkeys(name for name in node.input if name)
    graph = helper.make_graph(
        [node],
        node.name,
        [helper.make_tensor_value_info(name, types[name], None) for name in read if name not in constants],
        [helper.make_tensor_value_info(name, types[name], None) for name in node.output if name],
        [constants[name] for name in read if name in constants],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _forget(values: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    for known in values:
        for name in names:
            known.pop(name, None)
