"""Computes once what a fixed ROI makes constant: SwinUNETR's shifted-window masks above all."""

import onnx
from onnxscript import optimizer

# Elements of the largest tensor that is written into the file. SwinUNETR's first mask at a ROI of 96³ has
# 343³ = 40 million; two comparisons rebuild it from the 343² window labels, which are folded in any case.
MAX_ELEMENTS = 4_000_000


def fold_constants(model: onnx.ModelProto, max_elements: int = MAX_ELEMENTS) -> onnx.ModelProto:
    """Replaces each node that does not depend on the graph's inputs by its value, where that is small enough.

    `max_elements` bounds each folded tensor. A larger one stays a node, with whatever leads to it folded.
    """
    folded: onnx.ModelProto = optimizer.optimize(
        model,
        onnx_shape_inference=False,
        input_size_limit=max_elements,
        output_size_limit=max_elements,
    )
    return folded
