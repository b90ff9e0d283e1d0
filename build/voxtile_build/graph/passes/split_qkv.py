"""Graph pass: one product each for the queries, keys and values of self-attention.

Networks compute all three in one product and cut the result up. That transposes the whole tensor, which engines do not
fuse. Three products end in the form that engines fuse (OpenVINO computes transposition, product, softmax and product in
one kernel). The scale of the queries is multiplied into their weights, once for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from voxtile_build.graph.passes.matching import (
    Array,
    Writer,
    constant,
    made_by,
    only_user,
    permutation,
    split_constant,
    without_unused,
)

# From [batch, token, which, head, size] to [which, batch, head, token, size].
CUT_UP = (2, 0, 3, 1, 4)
# From [batch, token, head, size], and the like with the last two axes exchanged, as the second factor has them.
TO_HEADS, TO_HEADS_TURNED = (0, 2, 1, 3), (0, 2, 3, 1)


@dataclass(frozen=True)
class _Joint:
    """The product that makes all three.

    Attributes:
        source: its input [batch, token, size in].
        weights: [size in, 3 · heads · size].
        bias: [3 · heads · size], or None.
        tokens: of a window.
        heads: of the attention.
        size: of a head.
    """

    source: ir.Value
    weights: Array
    bias: Array | None
    tokens: int
    heads: int
    size: int


def split_qkv(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with the same scores except for rounding; `model` itself if it has no attention of this form."""
    changed = ir.from_proto(model)
    found = [(node, joint) for node in changed.graph if (joint := _joint(node)) is not None]
    for node, joint in found:
        _split(changed.graph, node, joint)
    result: onnx.ModelProto = without_unused(changed) if found else model
    return result


def _joint(node: ir.Node) -> _Joint | None:
    if node.op_type != "Transpose" or permutation(node) != CUT_UP:
        return None
    reshape = made_by(node.inputs[0], "Reshape")
    shape = None if reshape is None else constant(reshape.inputs[1])
    if reshape is None or shape is None or shape.size != len(CUT_UP) or shape[2] != 3 or (shape[1:] <= 0).any():
        return None
    users = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or any(_which(user) is None for user in users):
        return None
    value, bias = reshape.inputs[0], None
    add = made_by(value, "Add")
    if add is not None:
        found = split_constant(add)
        if found is None:
            return None
        value, bias = found
    product = made_by(value, "MatMul")
    weights = None if product is None else constant(product.inputs[1])
    tokens, heads, size = (int(shape[axis]) for axis in (1, 3, 4))
    width = 3 * heads * size
    if product is None or product.inputs[0] is None or weights is None or weights.ndim != 2:
        return None
    if weights.shape[1] != width or (bias is not None and bias.shape != (width,)):
        return None
    return _Joint(product.inputs[0], weights, bias, tokens, heads, size)


def _which(node: ir.Node) -> int | None:
    """0 if `node` takes the queries, 1 for the keys, 2 for the values; None if it takes none of them."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    index = constant(node.inputs[1])
    return int(index) if index is not None and index.ndim == 0 and 0 <= index < 3 else None


def _split(graph: ir.Graph, node: ir.Node, joint: _Joint) -> None:
    for use in list(node.outputs[0].uses()):
        which = _which(use.node)
        assert which is not None  # `_joint` has checked it
        columns = slice(which * joint.heads * joint.size, (which + 1) * joint.heads * joint.size)
        weights, bias = joint.weights[:, columns], None if joint.bias is None else joint.bias[columns]
        old, axes = use.node.outputs[0], TO_HEADS
        scale, turned = only_user(old, "Mul"), only_user(old, "Transpose")
        factor = None if scale is None else split_constant(scale)
        if scale is not None and factor is not None and factor[1].size == 1:
            by = np.float32(factor[1].reshape(()))
            weights, bias, old = weights * by, None if bias is None else bias * by, scale.outputs[0]
        elif turned is not None and permutation(turned) == (0, 1, 3, 2):
            old, axes = turned.outputs[0], TO_HEADS_TURNED
        writer = Writer(f"{node.name}/{'qkv'[which]}")
        value = writer.node("MatMul", joint.source, writer.constant(weights))
        if bias is not None:
            value = writer.node("Add", value, writer.constant(bias))
        value = writer.node("Reshape", value, writer.shape(-1, joint.tokens, joint.heads, joint.size))
        writer.insert(graph, node, [(old, writer.node("Transpose", value, perm=list(axes)))])
