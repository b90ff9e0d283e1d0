"""int8 for OpenVINO by NNCF, calibrated on scans; attention and norms stay in the model's own precision."""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import openvino

from .quantize_qdq import QuantizationError
from .verify import Feed

# As in Q/DQ: what int8 hurts more than it helps. Products and softmax are attention's.
_LEFT_ALONE = (
    *("ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul", "ScaledDotProductAttention", "SoftMax"),
    *("MVN", "GroupNormalization", "ReduceMean", "Multiply", "Add"),
)


def quantize_openvino(
    model: openvino.Model, calibration: Sequence[Feed], kept: frozenset[str] = frozenset()
) -> openvino.Model:
    """A copy with int8 convolutions. `calibration` holds the model's inputs by name, as [1, channel, *spatial].

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
    # OpenVINO reads a convolution with a bias as two operations, and gives the ONNX node's name to the sum.
    kept |= {f"{name}/WithoutBiases" for name in kept} & names
    # Both ends of the network: the scan comes in whole, and the scores go out whole.
    ends = _end_convolutions(model)
    present = {operation.get_type_name() for operation in model.get_ops()} & set(_LEFT_ALONE)
    nncf.set_log_level(logging.ERROR)
    # NNCF draws its progress on standard output, which belongs to the command's own report.
    with contextlib.redirect_stdout(io.StringIO()):
        quantized: openvino.Model = nncf.quantize(
            model.clone(),
            nncf.Dataset(list(calibration), dict),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(names=sorted(kept | ends), types=sorted(present)),
        )
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


def _end_convolutions(model: openvino.Model) -> set[str]:
    ordered = model.get_ordered_ops()
    convolutions = [op for op in ordered if "Convolution" in op.get_type_name()]
    names = {op.get_friendly_name() for op in convolutions}
    inner = {op.get_friendly_name() for op in convolutions if _leads(op, names) and _follows(op, names)}
    return names - inner - {op.get_friendly_name() for op in convolutions if "Backprop" in op.get_type_name()}


def _leads(operation: Any, names: set[str]) -> bool:
    def consumers(op: Any) -> list[Any]:
        return [target.get_node() for output in op.outputs() for target in output.get_target_inputs()]

    return _reaches(operation, names, consumers)


def _follows(operation: Any, names: set[str]) -> bool:
    def producers(op: Any) -> list[Any]:
        return [value.get_node() for value in op.input_values()]

    return _reaches(operation, names, producers)


def _reaches(operation: Any, names: set[str], step: Any) -> bool:
    seen: set[str] = set()
    front = step(operation)
    while front:
        current = front.pop()
        name = current.get_friendly_name()
        if name in names:
            return True
        if name not in seen:
            seen.add(name)
            front.extend(step(current))
    return False
