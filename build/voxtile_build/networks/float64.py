"""Runs a network in float64: the truth that rounding in fp32 is measured against. Knows no file and no engine."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)

COLUMN_BYTES = 256 * 2**20
"""PyTorch unfolds the whole input of a convolution in float64: 27 values a voxel and channel. This bounds it."""


def in_float64(network: Any, image: Tensor) -> Any:
    """What the network gives in float64, all of its weights and the image converted.

    Args:
        network: a module, scripted ones too, which is copied and not changed; or what has a method of this name.
        image: [batch, channel, *spatial] float32.

    Returns:
        The network's outputs; None where it cannot be run in float64, because its code names another type.
    """
    if hasattr(network, "in_float64"):
        return network.in_float64(image)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the gradients of scripted modules, which are copied too
            double = copy.deepcopy(network).double()
            with _InSlabs():  # type: ignore[no-untyped-call]
                outputs = double(image.double())
    except Exception:  # TorchScript and torch.export raise kinds of their own
        return None
    first = outputs[0] if isinstance(outputs, list | tuple) else outputs
    return outputs if isinstance(first, Tensor) and first.dtype == torch.float64 else None


class _InSlabs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes convolutions slab by slab along the first spatial axis, so that they need a bounded memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS and not args[6] and not kwargs:  # transposed ones unfold little
            return _convolution(func, *args)
        return func(*args, **(kwargs or {}))


def _convolution(func: Any, values: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    stride, padding, dilation, *more = rest
    values = functional.pad(values, [0, 0] * (values.ndim - 3) + [padding[0], padding[0]])
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    planes = (values.shape[2] - reach) // stride[0] + 1
    column = math.prod(weight.shape[1:]) * math.prod(values.shape[3:]) * len(values) * values.element_size()
    step = max(1, COLUMN_BYTES // column)
    slabs = []
    for first in range(0, planes, step):
        last = min(first + step, planes) - 1
        slab = values[:, :, first * stride[0] : last * stride[0] + reach]
        slabs.append(func(slab, weight, bias, stride, [0, *padding[1:]], dilation, *more))
    return torch.cat(slabs, dim=2)
