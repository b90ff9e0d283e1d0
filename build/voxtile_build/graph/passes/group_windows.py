"""Graph pass: shifted windows of a Swin transformer in groups that share a mask.

The mask says which tokens of a window were neighbours before the shift. Only windows at the far end of an axis contain
tokens that were not. So there are only two masks for each axis: eight in 3D, for the 343 windows of SwinUNETR's first
stage at 96³. Attention is then computed for each group at once, with one mask [tokens, tokens], a constant that fits
into the cache. The mask of all windows (161 MB there) and the reshapes around it, which keep engines from fusing
attention, are gone.
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
from voxtile_build.sessions import run_graph

FROM_HEADS = (0, 2, 1, 3)
"""[batch · window, head, token, size] to [batch · window, token, head, size]."""

MOST_GROUPS = 16
"""More groups would add more nodes than they save; in 3D there are eight."""


@dataclass(frozen=True)
class _Attention:
    """Masked attention of windows.

    Attributes:
        queries, keys, values: transposes of [batch · window, token, head, size].
        bias: a constant [1, head, token, token].
        mask: [1, window, 1, token, token].
        windows, heads, tokens, size: how many there are, and the size of a head.
        end: the node that gives the result [batch · window, token, head, size].
    """

    queries: ir.Node
    keys: ir.Node
    values: ir.Node
    bias: ir.Value
    mask: ir.Value
    windows: int
    heads: int
    tokens: int
    size: int
    end: ir.Node


def group_windows(model: onnx.ModelProto, most_groups: int = MOST_GROUPS) -> onnx.ModelProto:
    """A graph with the same scores except for rounding; `model` itself if it has no attention of this form.

    Attention with more than `most_groups` masks stays as it is. Constants must be folded, and queries, keys and values
    must be as `split_qkv` leaves them.
    """
    changed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    found = [match for node in changed.graph if (match := _attention(node)) is not None]
    masks = _values(model, [match.mask for match in found])
    grouped = [(match, kinds) for match in found if (kinds := _kinds(masks[match.mask.name], most_groups)) is not None]
    for match, (mask, groups) in grouped:
        _group(changed.graph, match, mask, groups)
    result: onnx.ModelProto = without_unused(changed) if grouped else model
    return result


def _attention(node: ir.Node) -> _Attention | None:
    """Goes from the Softmax up to the three Transposes, and down to the Transpose of heads and tokens."""
    if node.op_type != "Softmax":
        return None
    flat = made_by(node.inputs[0], "Reshape")
    masked = None if flat is None else made_by(flat.inputs[0], "Add")
    by_window, mask = (None, None) if masked is None else _masked(masked)
    biased = None if by_window is None else made_by(by_window.inputs[0], "Add")
    scores = None if biased is None else split_constant(biased)
    product = None if scores is None else made_by(scores[0], "MatMul")
    weighted = only_user(node.outputs[0], "MatMul")
    end = None if weighted is None else only_user(weighted.outputs[0], "Transpose")
    if product is None or weighted is None or end is None or biased is None or mask is None or scores is None:
        return None
    factors = [made_by(value, "Transpose") for value in (*product.inputs, weighted.inputs[1])]
    queries, keys, values = factors
    if queries is None or keys is None or values is None or permutation(end) != FROM_HEADS:
        return None
    shapes = [_split_shape(factor) for factor in (queries, keys, values)]
    bias = next(value for value in biased.inputs if value is not None and constant(value) is not None)
    if shapes[0] is None or any(shape != shapes[0] for shape in shapes) or mask.shape is None:
        return None
    tokens, heads, size = shapes[0]
    windows = mask.shape[1]
    if scores[1].shape != (1, heads, tokens, tokens) or not isinstance(windows, int):
        return None
    return _Attention(queries, keys, values, bias, mask, windows, heads, tokens, size, end)


def _masked(add: ir.Node) -> tuple[ir.Node, ir.Value] | tuple[None, None]:
    """The Reshape to [batch, window, head, token, token], and the mask [1, window, 1, token, token] that is added."""
    for value, mask in (add.inputs, tuple(reversed(add.inputs))):
        reshape, shape = made_by(value, "Reshape"), None if mask is None else mask.shape
        if reshape is None or mask is None or shape is None or len(shape) != 5:
            continue
        sizes = [size if isinstance(size, int) else 0 for size in shape]
        if sizes[0] == sizes[2] == 1 and sizes[1] > 1 and sizes[3] == sizes[4]:
            return reshape, mask
    return None, None


def _split_shape(transpose: ir.Node) -> tuple[int, int, int] | None:
    """(tokens, heads, size) of the Reshape to [-1, token, head, size] before a Transpose."""
    reshape = made_by(transpose.inputs[0], "Reshape")
    shape = None if reshape is None else constant(reshape.inputs[1])
    if shape is None or shape.size != 4 or shape[0] != -1:
        return None
    return int(shape[1]), int(shape[2]), int(shape[3])


def _values(model: onnx.ModelProto, masks: list[ir.Value]) -> dict[str | None, Array | None]:
    """Each mask, computed from the constants that it is made of; None if it depends on the input."""
    inputs = {value.name for value in model.graph.input}
    found: dict[str | None, Array | None] = {}
    for mask in masks:
        if mask.name is None or mask.name in found:
            continue
        stored = constant(mask)
        if stored is not None:
            found[mask.name] = stored
            continue
        part = onnx.utils.Extractor(model).extract_model([], [mask.name])
        used = {name for node in part.graph.node for name in node.input}
        found[mask.name] = None if used & inputs else run_graph(part, [{}])[0][mask.name]
    return found


def _kinds(mask: Array | None, most: int) -> tuple[Array, list[list[int]]] | None:
    """The mask, and the windows of each different mask; None if there are more than `most`."""
    if mask is None:
        return None
    kinds: dict[bytes, list[int]] = {}
    for window in range(mask.shape[1]):
        kinds.setdefault(mask[0, window].tobytes(), []).append(window)
    return (mask, list(kinds.values())) if len(kinds) <= most else None


def _group(graph: ir.Graph, found: _Attention, mask: Array, groups: list[list[int]]) -> None:
    tokens, heads, size = found.tokens, found.heads, found.size
    order = np.concatenate([np.array(group, np.int64) for group in groups])
    writer = Writer(f"{found.end.name}/windows")
    counts = [len(group) for group in groups]

    def parts(factor: ir.Node) -> list[ir.Value]:
        """A factor's windows, group by group."""
        source = factor.inputs[0]
        assert source is not None  # `_split_shape` has read it
        split = writer.node("Reshape", source, writer.shape(-1, found.windows, tokens, heads, size))
        sorted_ = writer.node("Gather", split, writer.constant(order), axis=1)
        rows = [
            writer.node("Reshape", part, writer.shape(-1, tokens, heads, size))
            for part in writer.split(sorted_, counts, axis=1)
        ]
        return [writer.node("Transpose", row, perm=list(permutation(factor))) for row in rows]

    results = []
    factors = zip(groups, parts(found.queries), parts(found.keys), parts(found.values), strict=True)
    for group, queries, keys, values in factors:
        scores = writer.node("Add", writer.node("MatMul", queries, keys), found.bias)
        if mask[0, group[0]].any():
            scores = writer.node("Add", scores, writer.constant(mask[:, group[0]]))
        weighted = writer.node("MatMul", writer.node("Softmax", scores, axis=-1), values)
        back = writer.node("Transpose", weighted, perm=list(FROM_HEADS))
        results.append(writer.node("Reshape", back, writer.shape(-1, len(group), tokens, heads, size)))
    joined = writer.node("Concat", *results, axis=1)
    unsorted = writer.node("Gather", joined, writer.constant(np.argsort(order)), axis=1)
    flat = writer.node("Reshape", unsorted, writer.shape(-1, tokens, heads, size))
    writer.insert(graph, found.end, [(found.end.outputs[0], flat)])
