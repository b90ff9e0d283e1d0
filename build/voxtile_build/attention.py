"""The same network with its attention in one operator: what engines run fused, and ONNX writes from opset 23 on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# MONAI's name for it, on every block that has both forms.
SWITCH = "use_flash_attention"
# Opset of the operator `Attention`.
OPSET = 23
# Both forms are fp32; they sum in another order. Of the largest score.
TOLERANCE = 1e-4


@contextmanager
def fused_attention(network: nn.Module) -> Iterator[int]:
    """For the length of the context, `network`'s blocks run their attention fused; gives how many there are.

    The weights are the same tensors, so nothing is copied. MONAI's blocks do so only where no gradient is asked for.
    """
    blocks: list[nn.Module] = [
        block
        for block in network.modules()
        if getattr(block, SWITCH, None) is False and not isinstance(block, torch.jit.ScriptModule)
    ]
    try:
        for block in blocks:
            setattr(block, SWITCH, True)
        yield len(blocks)
    finally:
        for block in blocks:
            setattr(block, SWITCH, False)


def attention_error(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest |Δ| between the network's scores with fused and with plain attention, of the largest |score|; fp32.

    NaN where either gives NaN, infinity where the fused form refuses the inputs.
    """
    with torch.inference_mode():
        plain = network(*inputs).float()
        try:
            with fused_attention(network):
                fused = network(*inputs).float()
        except (RuntimeError, ValueError):
            return float("inf")
    return float((plain - fused).abs().max() / plain.abs().max().clamp(min=1.0))
