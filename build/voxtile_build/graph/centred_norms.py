"""Graph pass: instance normalisation that keeps float32's accuracy over a large tile.

Engines compute mean and variance of a whole tile with plain float32 sums. Over 64³ voxels the error of the mean is
about 1e-5 of the largest values. If values are large compared with their spread (as in empty background), this error
is then divided by a spread near zero. Normalisation does not change if a constant is subtracted from its input.
Therefore the mean is subtracted before, axis after axis, in sums of few terms. The error of the engine's own sums is
then small compared with the spread.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

OPERATOR = "InstanceNormalization"
FIRST_SPATIAL_AXIS = 2
PREFIX = "centred_norms"


def centre_norms(model: ModelProto) -> ModelProto:
    """A copy of `model` with a centred input for every InstanceNormalization [batch, channel, *spatial].

    Nodes in control flow and nodes of unknown rank stay as they are. `model` must have inferred shapes.
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
