"""ONNX bytes to a TensorRT network whose precision is checked. For `tensorrt` 10 and 11, and `tensorrt_rtx`.

Networks are always strongly typed: each layer has the precision that is written in the ONNX graph. TensorRT 11 has no
other kind; TensorRT 10 needs a flag for it. Therefore precision is checked on the network, layer by layer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from voxtile_build.engines.tensorrt.errors import EnginePrecisionError, OnnxParseError

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

PLAIN = ("fp32", "tf32")
"""Precisions of the graph as it is exported."""

# The layers that do nearly all arithmetic. A precision is a promise about them.
_COMPUTE_LAYERS = {
    "fp32": ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"),
    # The types of a graph in tf32 are fp32; the builder rounds the factors of products.
    "tf32": ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"),
    "fp16": ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"),
    # There is no transposed convolution in bf16.
    "bf16": ("CONVOLUTION", "MATRIX_MULTIPLY"),
}
_DTYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "bf16": "BF16", "fp16": "HALF"}
_UNREADABLE = "MODEL_DESERIALIZE_FAILED"
# Without a GPU each API error ends in this, whatever its cause.
_NOISE = re.compile(r"\[checkMacros[^\n]*")
_CAUSE = re.compile(r"API Usage Error \((?:[^:()]+: )?(.*?)\.? In \w+ at ", re.DOTALL)


@dataclass(frozen=True)
class ParsedNetwork:
    """A network, its builder and its parser; the builder must live as long as the network that it made."""

    builder: Any
    network: Any
    parser: Any


def parse_onnx(trt: ModuleType, model: bytes, logger: Any) -> ParsedNetwork:
    """Parses a self-contained ONNX file.

    Raises:
        OnnxParseError: TensorRT does not understand it; the error names the node.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise _parse_error(parser)
    allow_decomposed_attention(trt, network)
    return ParsedNetwork(builder, network, parser)


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
        EnginePrecisionError: a layer has another one; the error names the first.
    """
    if promised == "int8":
        return _check_quantised(network)
    kinds = _COMPUTE_LAYERS[promised]
    due = [layer for layer in layers(network) if _computes(layer, kinds) and layer.name not in kept]
    for layer in due:
        found = layer.get_output(0).dtype.name
        if found != _DTYPES[promised]:
            raise EnginePrecisionError(
                f"Layer '{layer.name}' computes in {found}, but {promised} was promised. Precision lives in "
                f"the ONNX graph: convert the graph to {promised}, or name this layer among those kept.",
                layer=layer.name,
            )
    if not due and promised not in PLAIN:
        raise EnginePrecisionError(f"No layer computes in {promised}: every one of them was kept higher.")
    return len(due)


def _strongly_typed(trt: ModuleType) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    # Since 11 every network is strongly typed, and the flag may go away.
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _parse_error(parser: Any) -> OnnxParseError:
    error = parser.get_error(0)
    name, operator, code = error.node_name(), error.node_operator(), error.code().name
    if not operator and code != _UNREADABLE:
        return OnnxParseError(
            f"TensorRT refuses the graph's inputs or outputs ({code}): {_NOISE.sub('', error.desc()).strip()}. It has "
            "no 16-bit integers, no doubles and no strings: take another data type."
        )
    if not operator:
        return OnnxParseError(
            f"TensorRT cannot read the file as an ONNX model ({code}): it is truncated, or not ONNX. Export it again."
        )
    return OnnxParseError(f"Layer '{name}' ({operator}): {_explain(error.desc(), operator, code)}", layer=name)


def _explain(description: str, operator: str, code: str) -> str:
    if "Plugin not found" in description or code.startswith("UNSUPPORTED"):
        return (
            f"TensorRT has no operator {operator} for these inputs or attributes ({code}{_quoted(description)}). "
            "Replace it in the network, or serve this model with ONNX Runtime or OpenVINO."
        )
    cause = _CAUSE.search(description)
    return f"{cause.group(1) if cause else _NOISE.sub('', description).strip()} ({code})."


def _quoted(description: str) -> str:
    # If the parser gives a reason, it is the string literal of the assertion that failed.
    reason = re.search(r'"([^"]+)"', description)
    return f": {reason.group(1)}" if reason else ""


def _computes(layer: Any, kinds: tuple[str, ...]) -> bool:
    # Products of shapes and indices have no promised precision.
    return layer.type.name in kinds and layer.get_output(0).dtype.name in {"FLOAT", "HALF", "BF16"}


def _check_quantised(network: Any) -> int:
    dequantised = {layer.get_output(0).name for layer in layers(network) if layer.type.name == "DEQUANTIZE"}
    convolutions = [layer for layer in layers(network) if layer.type.name == "CONVOLUTION"]
    quantised = [layer for layer in convolutions if layer.get_input(0).name in dequantised]
    if not quantised:
        first = convolutions[0].name if convolutions else None
        raise EnginePrecisionError(
            f"None of {len(convolutions)} convolutions is fed by a dequantised tensor, but int8 was promised "
            f"(the first is '{first}'). Quantise the ONNX graph with Q/DQ pairs first.",
            layer=first,
        )
    return len(quantised)
