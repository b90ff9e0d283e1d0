"""What graph passes ask about a graph (who makes a value, who uses it, its constant), and how they write nodes.

Knows no pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

Array = NDArray[Any]


def made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes `value`, if it is of this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and not node.domain else None


def only_user(value: ir.Value, operator: str) -> ir.Node | None:
    """The only node that uses `value`, if it is of this operator."""
    users = value.uses()
    if len(users) != 1 or value.is_graph_output():
        return None
    node = users[0].node
    return node if node.op_type == operator and not node.domain else None


def constant(value: ir.Value | None) -> Array | None:
    """The tensor of a value that is constant; None for other values."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def split_constant(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """The two inputs of a node: the one that is not constant, and the constant. None if there is no such pair."""
    first, second = node.inputs
    for value, other in ((first, second), (second, first)):
        found = constant(other)
        if value is not None and found is not None and constant(value) is None:
            return value, found
    return None


def permutation(node: ir.Node) -> tuple[int, ...]:
    """The axes of a Transpose; empty if it names none."""
    attribute = node.attributes.get("perm")
    return () if attribute is None else tuple(attribute.as_ints())


class Writer:
    """Writes nodes and constants in front of a node of a graph; all names begin with one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._tape, self._count = prefix, Tape(), 0

    def constant(self, value: Array) -> ir.Value:
        """A new constant."""
        name = self._name("constant")
        return self._tape.initializer(ir.tensor(np.ascontiguousarray(value), name=name), name)

    def shape(self, *sizes: int) -> ir.Value:
        """A constant with the sizes for a Reshape."""
        return self.constant(np.array(sizes, np.int64))

    def node(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The output of a new node."""
        name = self._name(operator)
        value = self._tape.op(operator, inputs, attributes, name=name)
        value.name = name
        return value

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """`value` cut along an axis into parts of these sizes."""
        name = self._name("Split")
        parts: Sequence[ir.Value] = self._tape.op_multi_out(
            "Split", [value, self.shape(*sizes)], {"axis": axis}, num_outputs=len(sizes), name=name
        )
        for index, part in enumerate(parts):
            part.name = f"{name}_{index}"
        return parts

    def insert(self, graph: ir.Graph, before: ir.Node, replaced: Iterable[tuple[ir.Value, ir.Value]]) -> None:
        """Puts the written nodes in front of `before`, and each new value in place of an old one.

        Args:
            graph: the graph.
            before: a node of the graph.
            replaced: pairs of values (old, new).
        """
        for value in self._tape.initializers:
            graph.register_initializer(value)
        graph.insert_before(before, self._tape.nodes)
        for old, new in replaced:
            new.shape, new.type = old.shape, old.type
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"


def without_unused(model: ir.Model) -> Any:
    """The model as protobuf, without nodes and constants that nothing uses."""
    return ir.to_proto(RemoveUnusedNodesPass()(model).model)
