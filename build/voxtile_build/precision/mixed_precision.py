"""fp32 to mixed fp16 or bf16: convolutions and matrix products in low precision, norms and softmax in fp32.

The precision is written into the graph as casts, the only place where TensorRT 11 reads it. The only softmax in low
precision is the one inside the operator `Attention`: TensorRT refuses its attribute `softmax_precision`, and its
kernels accumulate in fp32. Knows no engine.
"""

from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from voxtile_build.errors import EngineError
from voxtile_build.graph.optimise import name_nodes
from voxtile_build.precision.ranges import types_of

Low = Literal["fp16", "bf16"]

FP16_MAX = 65504.0
"""Largest finite half-precision number (IEEE 754 binary16: (2 - 2⁻¹⁰)·2¹⁵)."""

HEADROOM = 4.0
"""Later scans may be brighter than the calibration scans: values that are this many times as large still fit."""

# Operators that gain from low precision.
COMPUTE = {
    "fp16": frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention"}),
    # TensorRT has no transposed convolution in bf16 (tried with TensorRT-RTX 1.7: no output type inferred).
    "bf16": frozenset({"Conv", "MatMul", "Gemm", "Attention"}),
}
# Operators that sum no more than a few values: they take the precision of their neighbours.
# fmt: off
FOLLOWERS = frozenset({
    "Add", "Sub", "Mul", "Neg", "Abs", "Max", "Min", "Clip", "Where", "Relu", "LeakyRelu", "PRelu", "Elu",
    "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Concat", "Split", "Transpose", "Reshape", "Flatten",
    "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherND", "Pad", "Expand", "Tile", "Identity", "MaxPool",
    "AveragePool", "DepthToSpace", "SpaceToDepth", "Resize",
})
# fmt: on
# Inputs that ONNX defines as fp32, whatever the type of the data.
_ALWAYS_FP32 = {"Resize": {1, 2}}

_LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_LOW_DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


class Fp16OverflowError(EngineError):
    """The values of a layer do not fit half precision. `layer` is its name, `max_abs` its largest magnitude."""

    def __init__(self, layer: str, max_abs: float) -> None:
        super().__init__(
            f"Layer '{layer}' reaches {max_abs:.4g} on the calibration scans, and fp16 ends at "
            f"{FP16_MAX:.0f}: the mask would turn black or NaN. Use precision 'auto' or 'bf16', or keep "
            "this layer in fp32."
        )
        self.layer = layer
        self.max_abs = max_abs


def to_mixed(model: onnx.ModelProto, precision: Low = "fp16", kept: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """A copy whose convolutions and matrix products run in `precision`; inputs and outputs keep their types.

    Args:
        model: the graph, in fp32.
        precision: the low precision.
        kept: names of nodes that stay in fp32.

    Raises:
        ValueError: no node has a name of `kept`, or the graph has control flow or local functions.
    """
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    name_nodes(mixed)
    _check_convertible(mixed, kept)
    types = dict(types_of(onnx.shape_inference.infer_shapes(mixed)))
    low = low_nodes(mixed, kept, precision)
    _Writer(mixed, types, precision).rewrite(low)
    return mixed


def low_nodes(model: onnx.ModelProto, kept: frozenset[str] = frozenset(), precision: Low = "fp16") -> frozenset[str]:
    """Names of the nodes that run in low precision.

    Connected followers join a convolution or product that they touch. Between two norms they stay in fp32: low
    precision would only cost casts and digits there.
    """
    nodes = {node.name: node for node in model.graph.node if node.name not in kept}
    compute = {name for name, node in nodes.items() if node.op_type in COMPUTE[precision]}
    followers = {name for name, node in nodes.items() if node.op_type in FOLLOWERS}
    neighbours = _neighbours(model)
    reached, front = set(compute), list(compute)
    while front:
        fresh = (neighbours[front.pop()] & followers) - reached
        reached |= fresh
        front.extend(fresh)
    return frozenset(reached)


def preparing_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that make the network's image from the graph's inputs, before any convolution or product.

    They are few and cheap. They compute with the values of the scan and with the mark of voxels outside it, which no
    16-bit type holds.
    """
    raw = {value.name for value in model.graph.input}
    cooked: set[str] = set()
    names = set()
    for node in model.graph.node:
        read = set(node.input)
        if node.op_type in COMPUTE["fp16"] or cooked & read:
            cooked |= set(node.output)
        elif raw & read:
            names.add(node.name)
            raw |= set(node.output)
    return frozenset(names)


def out_of_range(
    model: onnx.ModelProto, ranges: Mapping[str, float], limit: float = FP16_MAX / HEADROOM
) -> dict[str, float]:
    """Nodes with an input or output above `limit`, in the order of the graph, and that magnitude."""
    magnitudes = {
        node.name: max((ranges.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        for node in model.graph.node
    }
    return {name: magnitude for name, magnitude in magnitudes.items() if magnitude > limit}


def first_overflow(
    model: onnx.ModelProto, ranges: Mapping[str, float], kept: frozenset[str] = frozenset()
) -> tuple[str, float] | None:
    """The first layer, in the order of the graph, that would overflow in fp16, and its max |x|; None if there is none.

    Engines differ in what they make of an overflow (infinity, saturation, NaN), so it is found by ranges in fp32. Only
    layers that would be computed in fp16 count. A layer that reads a value out of range overflows like the layer that
    writes it. Nodes must have names.

    Args:
        model: the graph, in fp32.
        ranges: of `tensor_ranges`.
        kept: names of nodes that stay in fp32.
    """
    low = low_nodes(model, kept)
    for name, largest in out_of_range(model, ranges, FP16_MAX).items():
        if name in low:
            return name, largest
    return None


def refuse_overflow(model: onnx.ModelProto, ranges: Mapping[str, float], kept: frozenset[str] = frozenset()) -> None:
    """Checks that no layer overflows in fp16 if only the layers in `kept` stay in fp32.

    Raises:
        Fp16OverflowError: one does; the error names it.
    """
    found = first_overflow(model, ranges, kept)
    if found is not None:
        raise Fp16OverflowError(*found)


def _constants(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(tensor.name for tensor in model.graph.initializer)


def _check_convertible(model: onnx.ModelProto, kept: frozenset[str]) -> None:
    unknown = kept - {node.name for node in model.graph.node}
    if unknown:
        raise ValueError(f"Cannot keep {sorted(unknown)} in fp32: the graph has no nodes of these names.")
    if model.functions:
        raise ValueError("The graph has local functions. Inline them first (onnx.inliner).")
    for node in model.graph.node:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise ValueError(f"Layer '{node.name}' ({node.op_type}) is control flow, which has no mixed form.")


def _neighbours(model: onnx.ModelProto) -> dict[str, set[str]]:
    by_tensor: dict[str, set[str]] = {}
    constants = _constants(model)
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            # A constant does not connect two nodes that share it.
            if name and name not in constants:
                by_tensor.setdefault(name, set()).add(node.name)
    neighbours: dict[str, set[str]] = {node.name: set() for node in model.graph.node}
    for names in by_tensor.values():
        for name in names:
            neighbours[name] |= names
    return neighbours


class _Writer:
    """Rewrites one graph in place; each cast and each constant in low precision is added once."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], precision: Low) -> None:
        self.graph = model.graph
        self.types = types
        self.low, self.dtype = _LOW_TYPES[precision], _LOW_DTYPES[precision]
        self.suffix = f"::{precision}"
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.cast: dict[tuple[str, int], str] = {}
        # The type that each fp32 tensor has in the new graph.
        self.now: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []

    def rewrite(self, low: frozenset[str]) -> None:
        outputs = {value.name for value in self.graph.output}
        for node in self.graph.node:
            self._write(node, self.low if node.name in low else TensorProto.FLOAT, outputs)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused()
        # These are the types before.
        del self.graph.value_info[:]

    def _write(self, node: onnx.NodeProto, kind: int, outputs: set[str]) -> None:
        fixed = _ALWAYS_FP32.get(node.op_type, set())
        for index, name in enumerate(node.input):
            if self.types.get(name) == TensorProto.FLOAT:
                node.input[index] = self._as(name, TensorProto.FLOAT if index in fixed else kind)
        renamed = []
        for index, name in enumerate(node.output):
            if self.types.get(name) == TensorProto.FLOAT:
                self.now[name] = kind
                if name in outputs and kind != TensorProto.FLOAT:
                    node.output[index] = name + self.suffix
                    renamed.append(name)
        self.nodes.append(node)
        for name in renamed:
            self.cast[name, self.low] = name + self.suffix
            self.now[name] = TensorProto.FLOAT
            self.nodes.append(_cast(name + self.suffix, name, TensorProto.FLOAT))

    def _as(self, name: str, kind: int) -> str:
        if self.now.get(name, TensorProto.FLOAT) == kind:
            return name
        if (name, kind) not in self.cast:
            self.cast[name, kind] = self._convert(name, kind)
        return self.cast[name, kind]

    def _convert(self, name: str, kind: int) -> str:
        target = name + (self.suffix if kind == self.low else "::fp32")
        if name in self.constants:
            # A weight out of range becomes infinite; `first_overflow` finds it, by name.
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(self.constants[name]).astype(self.dtype)
            self.graph.initializer.append(numpy_helper.from_array(values, target))
        else:
            self.nodes.append(_cast(name, target, kind))
        return target

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        used |= {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast:{source}->{target}", to=kind)
