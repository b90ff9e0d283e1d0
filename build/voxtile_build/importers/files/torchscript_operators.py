"""Records which operators a TorchScript network runs, as a graph without branches and loops. Knows nothing of ONNX.

A scripted network keeps the branches of its Python code, such as those for sizes or for steps that it may have. At one
size of input all of them go one way, unless the values of the image decide; such a network is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from voxtile_build.errors import ExportError

DECIDING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""Marks of operators that turn values into numbers, truth values or sizes, by which a network's code may decide."""


class DataDependentError(ExportError):
    """What a network runs depends on the values of its input."""


def record(module: nn.Module, image: Tensor) -> GraphModule:
    """The operators that `module` runs for an image of this size, with the module's weights.

    Args:
        module: TorchScript in evaluation mode.
        image: [batch, channel, *spatial]; a batch of 2 or more is not taken for a constant.

    Raises:
        DataDependentError: what the network runs depends on the image's values.
    """
    with torch.no_grad():
        _check_decisions(module, image)
        # The error is off because decisions by the module's own constants are recorded; others were refused above.
        recorded: GraphModule = make_fx(module, pre_dispatch=True, _error_on_data_dependent_ops=False)(image)
    recorded.graph.eliminate_dead_code()  # sizes that were read would fix the batch
    recorded.recompile()
    return recorded


def _check_decisions(module: nn.Module, image: Tensor) -> None:
    watched = _Watched(image)
    try:
        with watched:
            module(image)
    except RuntimeError:
        if watched.decision is None:
            raise
    if watched.decision is not None:
        raise DataDependentError(
            f"what the network runs depends on the image's values ({watched.decision}), and a graph is the same for "
            "every image; choose by torch.where in the network's code"
        )


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches which tensors come of the image.

    Attributes:
        decision: the operator that turned values of the image into a number or a size; None while there is none.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.decision: str | None = None
        self._of_image = WeakTensorKeyDictionary()
        self._of_image[image] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        concerned = any(value in self._of_image for value in given)
        if concerned and any(tag in func.tags for tag in DECIDING):
            self.decision = str(func)
            raise RuntimeError(self.decision)
        result = func(*args, **(kwargs or {}))
        if concerned:
            changed = given if func._schema.is_mutable else []
            for value in (*tree_leaves(result), *changed):
                if isinstance(value, Tensor):
                    self._of_image[value] = True
        return result
