"""int8 for OpenVINO by NNCF, calibrated on scans; attention and norms stay in the model's own precision."""

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

# As in Q/DQ: what int8 hurts more than it helps. Products and softmax are attention's.
_LEFT_ALONE = (
    *("ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul", "ScaledDotProductAttention", "SoftMax"),
    *("MVN", "GroupNormalization", "ReduceMean", "Multiply", "Add"),
)


def quantize_openvino(
    model: openvino.Model, calibration: Sequence[Feed], kept: frozenset[str] = frozenset()
) -> openvino.Model:
    """A copy with int8 convolutions, transposed ones of blocks that do not overlap among them.

    `calibration` holds the model's inputs by name, as [1, channel, *spatial].

    `kept` names operations (`get_friendly_name()`) that stay. NNCF corrects the biases on the same inputs.
    Raises QuantizationError without calibration inputs, or where a kept name is unknown.
    """
    # NNCF takes seconds to import and pulls in scikit-learn: only who quantises pays.
    import nncf

    if not calibration:
        raise QuantizationError("int8 is calibrated on at least one scan; none was given. Name scans in the spec.")
    names = {operation.get_friendly_name() for operation in model.get_ops()}
    if unknown := kept - names:
        raise QuantizationError(f"Cannot keep {sorted(unknown)}: the model has no operations of these names.")
    model = model.clone()
    upsample_by_products(model, kept)
    # OpenVINO reads a convolution with a bias as two operations, and gives the ONNX node's name to the sum.
    kept |= {f"{name}/WithoutBiases" for name in kept} & names
    # Both ends of the network: the scan comes in whole, and the scores go out whole.
    ends = _outer_operations(model)
    present = {operation.get_type_name() for operation in model.get_ops()} & set(_LEFT_ALONE)
    nncf.set_log_level(logging.ERROR)
    # NNCF draws its progress on standard output, which belongs to the command's own report.
    with contextlib.redirect_stdout(io.StringIO()):
        quantized: openvino.Model = nncf.quantize(
            model,
            nncf.Dataset(list(calibration), dict),
            subset_size=len(calibration),
            # Activations may lie off zero, as after a leaky ReLU they do: as fast, and fewer voxels flip (1.4 instead
            # of 1.6 in 1,000, PlainConvUNet trained on a brain, OpenVINO 2026 on a CPU with VNNI).
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted(kept | ends), types=sorted(present)),
        )
    quantize_upsampling(quantized, calibration, kept | ends)
    return quantized


def quantized_convolutions(model: openvino.Model) -> int:
    """How many convolutions have int8 weights: NNCF gives them to those whose input it quantises too."""
    return sum(_has_int8_weights(op) for op in model.get_ops() if op.get_type_name() == "Convolution")


def _has_int8_weights(convolution: Any) -> bool:
    # Weights pass through a conversion and a scale on their way; activations may come through a concatenation.
    node = convolution.input_value(1).get_node()
    while node.get_type_name() in {"Multiply", "Subtract", "Convert"}:
        node = node.input_value(0).get_node()
    return bool(node.get_output_element_type(0) == openvino.Type.i8)


def _outer_operations(model: openvino.Model) -> set[str]:
    """Names of the operations that no convolution comes before, or none after; the end convolutions are among them.

    Besides convolutions NNCF rounds sums, products and comparisons: at the front those of the scan's own values.
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
    """Names of the operations that a convolution comes before, in this order of operations."""
    found: set[str] = set()
    for operation in ordered:
        name = operation.get_friendly_name()
        if any("Convolution" in one.get_type_name() or one.get_friendly_name() in found for one in neighbours[name]):
            found.add(name)
    return found
