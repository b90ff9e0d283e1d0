"""ONNX bytes to a TensorRT network whose precision is checked. For `tensorrt` 10 and 11, and `tensorrt_rtx`.

Networks are always strongly typed: each layer has the precision that is written in the ONNX graph. TensorRT 11 has no
other kind; TensorRT 10 needs a flag for it. Therefore precision is checked on the network, layer by layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal, NamedTuple

from voxtile_build.errors import EngineError

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

PLAIN = ("fp32", "tf32")
"""Precisions of the graph as it is exported: in tf32 the builder rounds the factors of products."""

_COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
"""The layers that do nearly all arithmetic. A precision is a promise about them."""
_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "bf16": "BF16", "fp16": "HALF"}
_UNREADABLE = "MODEL_DESERIALIZE_FAILED"
# Without a GPU each API error ends in this, whatever its cause.
_NOISE = re.compile(r"\[checkMacros[^\n]*")
_CAUSE = re.compile(r"API Usage Error \((?:[^:()]+: )?(.*?)\.? In \w+ at ", re.DOTALL)


class Parsed(NamedTuple):
    """A network with what made it; both must live as long as the network."""

    builder: Any
    network: Any
    parser: Any


def parse_onnx(trt: ModuleType, model: bytes, logger: Any) -> Parsed:
    """Parses a self-contained ONNX file.

    Raises:
        EngineError: TensorRT does not understand it; the error names the node.
    """
    builder, flags = trt.Builder(logger), trt.NetworkDefinitionCreationFlag
    # In TensorRT 11 every network is strongly typed, and the flag may go away.
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise _parse_error(parser.get_error(0))
    allow_decomposed_attention(trt, network)
    return Parsed(builder, network, parser)


def allow_decomposed_attention(trt: ModuleType, network: Any) -> int:
    """Lets each fused attention fall back to plain layers where no dedicated kernel exists; returns how many there are.

    Otherwise the builder refuses head sizes and types that have no kernel.
    """
    boundaries = [layer for layer in layers(network) if layer.type.name == "ATTENTION_INPUT"]
    for boundary in boundaries:
        # get_layer always answers with the base class; this is the API's own way down to the real one.
        boundary.__class__ = trt.IAttentionInputLayer
        boundary.attention.decomposable = True
    return len(boundaries)


def layers(network: Any) -> Iterator[Any]:
    """The network's layers, in order."""
    return (network.get_layer(index) for index in range(network.num_layers))


def check_network_precision(network: Any, promised: Precision, kept: frozenset[str] = frozenset()) -> int:
    """Checks that each convolution and matrix product has the promised precision.

    int8 is read from the Q/DQ pair before a convolution. Without this check, a graph that was never converted would
    silently become a slow fp32 plan.

    Args:
        network: TensorRT's network.
        promised: the precision.
        kept: names of the ONNX nodes that keep a higher precision on purpose.

    Returns:
        How many layers have the promised precision.

    Raises:
        EngineError: a layer has another one, and the error names the first; or no layer has a reduced one.
    """
    if promised == "int8":
        return _check_quantised(network)
    due = [layer for layer in layers(network) if _computes(layer, promised) and layer.name not in kept]
    for layer in due:
        if (found := layer.get_output(0).dtype.name) != _TYPES[promised]:
            raise EngineError(
                f"Layer '{layer.name}' computes in {found}, but {promised} was promised. Precision lives in "
                f"the ONNX graph: convert the graph to {promised}, or name this layer among those kept."
            )
    if not due and promised not in PLAIN:
        raise EngineError(f"No layer computes in {promised}: every one of them was kept higher.")
    return len(due)


def _computes(layer: Any, promised: Precision) -> bool:
    if promised == "bf16" and layer.type.name == "DECONVOLUTION":  # there is none in bf16
        return False
    # Products of shapes and indices have no promised precision.
    return layer.type.name in _COMPUTE and layer.get_output(0).dtype.name in _TYPES.values()


def _check_quantised(network: Any) -> int:
    dequantised = {layer.get_output(0).name for layer in layers(network) if layer.type.name == "DEQUANTIZE"}
    convolutions = [layer for layer in layers(network) if layer.type.name == "CONVOLUTION"]
    quantised = sum(layer.get_input(0).name in dequantised for layer in convolutions)
    if not quantised:
        raise EngineError(
            f"None of {len(convolutions)} convolutions is fed by a dequantised tensor, but int8 was promised. Quantise "
            "the ONNX graph with Q/DQ pairs first."
        )
    return quantised


def _parse_error(error: Any) -> EngineError:
    name, operator, code = error.node_name(), error.node_operator(), error.code().name
    description = _NOISE.sub("", error.desc()).strip()
    if not operator and code == _UNREADABLE:
        return EngineError(
            f"TensorRT cannot read the file as an ONNX model ({code}): it is truncated, or not ONNX. Export it again."
        )
    if not operator:
        return EngineError(
            f"TensorRT refuses the graph's inputs or outputs ({code}): {description}. It has no 16-bit integers, no "
            "doubles and no strings: take another data type."
        )
    if "Plugin not found" in description or code.startswith("UNSUPPORTED"):
        # If the parser gives a reason, it is the string literal of the assertion that failed.
        reason = re.search(r'"([^"]+)"', description)
        return EngineError(
            f"Layer '{name}' ({operator}): TensorRT has no operator {operator} for these inputs or attributes "
            f"({code}{f': {reason[1]}' if reason else ''}). Replace it in the network, or serve this model with ONNX "
            "Runtime or OpenVINO."
        )
    cause = _CAUSE.search(description)
    return EngineError(f"Layer '{name}' ({operator}): {cause[1] if cause else description} ({code}).")
