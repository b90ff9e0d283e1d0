"""Transposed convolutions whose blocks do not overlap become 1×1 convolutions and rearrangements, for int8 in OpenVINO.

NNCF rounds inputs with an offset, and for those OpenVINO computes a transposed convolution in bf16: it changes the
layout of the result in fp32, rounds it, and changes it back, which takes a tenth of the time of a U-Net. A 1×1
convolution ends in int8 directly, and the rearrangement moves bytes; the sums are the same. A transposed convolution
that is added to another tensor stays as it is: see `upsample_int8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13
from openvino.passes import ConstantFolding, Manager

from voxtile_build.engines.openvino.upsample_int8 import OPERATOR, is_half_of_a_sum

WHOLE_LINE = 64
"""Channels from which on the axis of the blocks comes before that of the channels. OpenVINO 2026.4 is faster so with 64
channels (48³: 0.6 ms instead of 2.4), and the other way round with fewer (96³, 32 channels: 11 ms instead of 32)."""


def upsample_by_products(model: openvino.Model, kept: frozenset[str] = frozenset()) -> int:
    """Replaces, in `model` itself, each transposed convolution whose kernel is its stride, the same along all axes.

    Args:
        model: the model.
        kept: names (`get_friendly_name()`) of operations that stay as they are.

    Returns:
        How many were replaced.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)  # a bias may be reshaped by operations, which become a constant
    done = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == OPERATOR and _apart(node) and not is_half_of_a_sum(node):
            end, bias = _end(node)
            if not {node.get_friendly_name(), end.get_friendly_name()} & kept:
                _replace(node, end, bias)
                done += 1
    model.validate_nodes_and_infer_types()
    return done


def _apart(node: Any) -> bool:
    """Whether each output voxel is made from one input voxel, and the weights are constant."""
    weights, facts = node.input_value(1).get_node(), node.get_attributes()
    if weights.get_type_name() != "Constant" or node.get_input_size() != 2:
        return False
    kernel, strides = list(weights.get_output_shape(0))[2:], list(facts["strides"])
    plain = not any([*facts["pads_begin"], *facts["pads_end"], *facts["output_padding"]])
    return plain and kernel == strides and len(set(strides)) == 1 and set(facts["dilations"]) == {1}


def _end(node: Any) -> tuple[Any, NDArray[Any] | None]:
    """The last operation of the layer, and the bias [channel] that it adds, or None."""
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    if len(users) == 1 and users[0].get_type_name() == "Add":
        channels = node.get_output_partial_shape(0)[1].get_length()
        for value in users[0].input_values():
            constant = value.get_node()
            if constant.get_type_name() == "Constant" and constant.get_output_size() == 1:
                bias = np.array(constant.get_data())
                if bias.size == channels and bias.shape[1:2] == (channels,):
                    return users[0], bias.reshape(-1)
    return node, None


def _replace(node: Any, end: Any, bias: NDArray[Any] | None) -> None:
    weights = np.array(node.input_value(1).get_node().get_data())  # [in, out, *block]
    inputs, outputs, *block = weights.shape
    axes, cells = len(block), int(np.prod(block))
    in_front = outputs >= WHOLE_LINE
    order = (*range(2, 2 + axes), 1, 0) if in_front else (1, *range(2, 2 + axes), 0)
    product = weights.transpose(order).reshape(cells * outputs, inputs, *(1,) * axes)
    ones, zeros = [1] * axes, [0] * axes
    source = node.input_value(0)
    value = opset13.convolution(source, opset13.constant(np.ascontiguousarray(product)), ones, zeros, zeros, ones)
    value.set_friendly_name(f"{end.get_friendly_name()}/products")
    if bias is not None:
        spread = np.tile(bias, cells) if in_front else np.repeat(bias, cells)
        value = opset13.add(value, opset13.constant(spread.reshape(1, -1, *ones)))
        value.set_friendly_name(f"{end.get_friendly_name()}/bias")
    value = opset13.depth_to_space(value, "blocks_first" if in_front else "depth_first", block[0])
    value.set_friendly_name(end.get_friendly_name())
    for target in end.output(0).get_target_inputs():
        target.replace_source_output(value.output(0))
