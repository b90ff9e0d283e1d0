"""Lets PyTorch's exporter read its operators once a process, not once an export, which takes it a second of CPU.

They depend on the opset and on nothing else. It imports torch.
"""

from __future__ import annotations

import copy
import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry


@functools.cache
def share_operators() -> None:
    """From now on, each export in this process gets a copy of the first one's operators."""
    read = functools.cache(ONNXRegistry.from_torchlib)

    def shared(**opset: int) -> ONNXRegistry:
        operators = copy.copy(read(**opset))
        operators.functions = {target: list(known) for target, known in operators.functions.items()}
        return operators

    ONNXRegistry.from_torchlib = staticmethod(shared)
