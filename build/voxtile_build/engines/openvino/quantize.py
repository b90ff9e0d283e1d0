"""int8 for OpenVINO by NNCF, calibrated on scans; attention and norms keep the model's own precision."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import openvino

from voxtile_build.arrays import Feed
from voxtile_build.engines.openvino.upsample import upsample_by_products
from voxtile_build.engines.openvino.upsample_int8 import quantize_upsampling
from voxtile_build.precision.quantize_qdq import QuantizationError

# Never quantised, as with Q/DQ pairs: int8 costs them more than it gains. Products and softmax belong to attention.
_NEVER_QUANTISED = (
    *("ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul", "ScaledDotProductAttention", "SoftMax"),
    *("MVN", "GroupNormalization", "ReduceMean", "Multiply", "Add"),
)


def quantize_openvino(
    model: openvino.Model, calibration: Sequence[Feed], kept: frozenset[str] = frozenset()
) -> openvino.Model:
    """A copy with int8 convolutions, and int8 transposed convolutions whose blocks do not overlap.

    Args:
        model: the model, in fp32.
        calibration: the model's inputs by name, each [1, channel, *spatial]; NNCF corrects biases on them too.
        kept: names (`get_friendly_name()`) of operations that stay as they are.

    Raises:
        QuantizationError: no input is given, or no operation has a name of `kept`.
    """
    # NNCF takes seconds to import and loads scikit-learn, which only int8 needs.
    import nncf

    if not calibration:
        raise QuantizationError("int8 is calibrated on at least one scan; none was given. Name scans in the spec.")
    names = {operation.get_friendly_name() for operation in model.get_ops()}
    if unknown := kept - names:
        raise QuantizationError(f"Cannot keep {sorted(unknown)}: the model has no operations of these names.")
    model = model.clone()
    upsample_by_products(model, kept)
    # OpenVINO makes two operations of a convolution with a bias, and the sum gets the name of the ONNX node.
    kept |= {f"{name}/WithoutBiases" for name in kept} & names
    # At both ends of the network nothing is rounded: neither the scan nor the scores.
    ends = _outer_operations(model)
    present = {operation.get_type_name() for operation in model.get_ops()} & set(_NEVER_QUANTISED)
    nncf.set_log_level(logging.ERROR)
    # NNCF draws its progress on standard output, where the command's own report goes.
    with contextlib.redirect_stdout(io.StringIO()):
        quantized: openvino.Model = nncf.quantize(
            model,
            nncf.Dataset(list(calibration), dict),
            subset_size=len(calibration),
            # Ranges of activations need not be symmetric, as after a leaky ReLU: this is as fast, and fewer voxels
            # change (1.4 instead of 1.6 in 1,000, PlainConvUNet trained on a brain, OpenVINO 2026, CPU with VNNI).
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted(kept | ends), types=sorted(present)),
        )
    quantize_upsampling(quantized, calibration, kept | ends)
    return quantized


def quantized_convolutions(model: openvino.Model) -> int:
    """How many convolutions have int8 weights; NNCF quantises the inputs of the same convolutions."""
    return sum(_has_int8_weights(op) for op in model.get_ops() if op.get_type_name() == "Convolution")


def _has_int8_weights(convolution: Any) -> bool:
    # Between the weights and the convolution lie a conversion and a scale.
    node = convolution.input_value(1).get_node()
    while node.get_type_name() in {"Multiply", "Subtract", "Convert"}:
        node = node.input_value(0).get_node()
    return bool(node.get_output_element_type(0) == openvino.Type.i8)


def _outer_operations(model: openvino.Model) -> set[str]:
    """Names of the operations with no convolution before them or none after them; the end convolutions are among them.

    Besides convolutions NNCF rounds sums, products and comparisons; the first of these compute with the scan's values.
    """
    ordered = [operation for operation in model.get_ordered_ops() if operation.get_type_name() != "Constant"]
    producers = {op.get_friendly_name(): {value.get_node() for value in op.input_values()} for op in ordered}
    after = _beyond(ordered, producers)
    consumers: dict[str, set[Any]] = {name: set() for name in producers}
    for op in ordered:
        for producer in producers[op.get_friendly_name()]:
            consumers.setdefault(producer.get_friendly_name(), set()).add(op)
    before = _beyond(ordered[::-1], consumers)
    inner = after & before
    return {op.get_friendly_name() for op in ordered if op.inputs() and op.outputs()} - inner


def _beyond(ordered: Sequence[Any], neighbours: Mapping[str, set[Any]]) -> set[str]:
    """Names of the operations that have a convolution before them, in this order of operations."""
    found: set[str] = set()
    for operation in ordered:
        name = operation.get_friendly_name()
        if any("Convolution" in one.get_type_name() or one.get_friendly_name() in found for one in neighbours[name]):
            found.add(name)
    return found
