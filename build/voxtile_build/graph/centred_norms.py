"""Graph pass: instance normalisation that keeps float32's accuracy over a large tile.

Engines take mean and variance over a whole tile with plain float32 sums: over 64³ voxels the mean is off by about
1e-5 of the largest values, and where values are large against their spread (empty background is the extreme)
that error is then divided by a spread of almost nothing. Normalisation does not change when a constant is taken
from its input. So the mean is taken away before, in stages, one axis after the other, each a sum of few terms;
what the engine's own sums are then off by is small against the spread.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

OPERATOR = "InstanceNormalization"
FIRST_SPATIAL_AXIS = 2
PREFIX = "centred_norms"


def centre_norms(model: ModelProto) -> ModelProto:
    """A copy of `model` in which every InstanceNormalization [batch, channel, *spatial] has its input centred first.

    Nodes inside control flow, and nodes whose rank is not known, stay as they are. Needs inferred shapes.
    """
    result = ModelProto()
    result.CopyFrom(model)
    ranks = _ranks(model)
    nodes: list[NodeProto] = []
    axes: set[int] = set()
    for index, node in enumerate(model.graph.node):
        rank = ranks.get(node.input[0], 0) if node.op_type == OPERATOR and not node.domain else 0
        nodes += _centred(node, index, rank) if rank > FIRST_SPATIAL_AXIS else [node]
        axes |= set(range(FIRST_SPATIAL_AXIS, rank))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(numpy_helper.from_array(np.array([axis]), _axis(axis)) for axis in sorted(axes))
    return result


def _centred(node: NodeProto, index: int, rank: int) -> list[NodeProto]:
    source, nodes = node.input[0], []
    for axis in reversed(range(FIRST_SPATIAL_AXIS, rank)):
        mean = f"{PREFIX}_mean_{index}_{axis}"
        nodes.append(helper.make_node("ReduceMean", [source, _axis(axis)], [mean], name=mean, keepdims=1))
        source = mean
    shifted = f"{PREFIX}_shifted_{index}"
    norm = NodeProto()
    norm.CopyFrom(node)
    norm.input[0] = shifted
    return [*nodes, helper.make_node("Sub", [node.input[0], source], [shifted], name=shifted), norm]


def _axis(axis: int) -> str:
    return f"{PREFIX}_axis_{axis}"


def _ranks(model: ModelProto) -> dict[str, int]:
    values = (*model.graph.input, *model.graph.value_info)
    tensors = ((value.name, value.type.tensor_type) for value in values)
    return {name: len(tensor.shape.dim) for name, tensor in tensors if tensor.HasField("shape")}
