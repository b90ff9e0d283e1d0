"""int8 written into the graph: Q/DQ pairs before convolutions, and dynamic int8 of matrix products. Knows no engine."""

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization

from voxtile_build.arrays import Feed
from voxtile_build.errors import EngineError
from voxtile_build.graph.optimise import name_nodes


class QuantizationError(EngineError):
    """The graph cannot be quantised as asked."""


def quantize_qdq(
    model: onnx.ModelProto, calibration: Sequence[Feed], kept: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Static, symmetric int8 of the convolutions between the first and the last, with a weight scale for each channel.

    Transposed convolutions, norms, products and biases stay as they are. Outputs are not quantised: the next layer is
    usually a norm, which needs all their digits.

    Args:
        model: the graph, in fp32.
        calibration: feeds; the smallest and the largest value of each tensor give its scale.
        kept: names of convolutions that stay as they are.

    Raises:
        QuantizationError: no feed is given, or no convolution is left.
    """
    if not calibration:
        raise QuantizationError("int8 is calibrated on at least one scan; none was given. Name scans in the spec.")
    layers = quantizable(model, kept)
    with _files(model) as (source, target), _quiet():
        quantization.quantize_static(
            source,
            target,
            _Reader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # TensorRT adds biases in higher precision and refuses int32 ones.
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        return onnx.load(target)


def quantize_dynamic(model: onnx.ModelProto, kept: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """int8 weights of matrix products; activations are scaled at run time, so no calibration is needed.

    Only ONNX Runtime runs such a graph. Its dynamic int8 convolution is two-dimensional, so convolutions stay as they
    are.

    Raises:
        QuantizationError: the graph has no matrix product by a constant.
    """
    named = _named(model)
    constants = {tensor.name for tensor in named.graph.initializer}
    products = [
        node.name
        for node in named.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants and node.name not in kept
    ]
    if not products:
        raise QuantizationError(
            "Dynamic int8 has nothing to quantise: the graph multiplies by no constant matrix. Use static int8."
        )
    with _files(named) as (source, target), _quiet():
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            # Unsigned: with signed weights, a CPU without VNNI adds pairs of products in 16 bits, which overflow.
            weight_type=quantization.QuantType.QUInt8,
        )
        return onnx.load(target)


def quantizable(
    model: onnx.ModelProto, kept: frozenset[str] = frozenset(), operators: Collection[str] = ("Conv",)
) -> list[str]:
    """Convolutions for int8: those with a convolution both before and after them, without those in `kept`.

    The first convolutions see the scan, and the last make the scores: these are cheap and the most sensitive.

    Raises:
        QuantizationError: no convolution is left.
    """
    nodes = _named(model).graph.node
    upstream = _with_convolution_before(nodes)
    downstream = _with_convolution_after(nodes)
    layers = [
        node.name
        for node in nodes
        if node.op_type in operators and node.name in upstream & downstream and node.name not in kept
    ]
    if not layers:
        raise QuantizationError("No convolution is left for int8 between the first and the last: use fp16 or bf16.")
    return layers


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Gives each feed once, through the interface of the calibrator."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds: Iterator[Mapping[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self.feeds, None)
        return None if feed is None else dict(feed)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    named = onnx.ModelProto()
    named.CopyFrom(model)
    return name_nodes(named)


def _with_convolution_before(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    convolved: set[str] = set()
    after: set[str] = set()
    for node in nodes:
        seen = bool(convolved & set(node.input))
        if seen:
            after.add(node.name)
        if seen or node.op_type.startswith("Conv"):
            convolved |= set(node.output)
    return after


def _with_convolution_after(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    leading: set[str] = set()
    before: set[str] = set()
    for node in reversed(nodes):
        seen = bool(leading & set(node.output))
        if seen:
            before.add(node.name)
        if seen or node.op_type.startswith("Conv"):
            leading |= set(node.input)
    return before


@contextmanager
def _files(model: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(_named(model)), source)
        yield source, Path(folder, "target.onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    # The quantiser recommends, through the root logger, a preparation that was done by the graph passes.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
