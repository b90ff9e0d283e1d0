"""The wrapped network as ONNX.

A network of PyTorch is traced with its wrapper. The graph of a network in a file of its own is put between the two
halves of the wrapper, and its weights stay as they are. Knows no engine.
"""

from __future__ import annotations

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from voxtile_build.errors import ExportError
from voxtile_build.graph.torch_to_onnx import IR_VERSION, OPSET, checked, export, finished
from voxtile_build.graph.wrapper import Wrapper, example_inputs, input_names
from voxtile_build.networks.file_network import IMAGE, LOGITS, FileNetwork
from voxtile_build.spec.spec import Spec

TRACED_BATCH = 2
"""The exporter would take a batch of 0 or 1 for a constant."""

BEFORE, NETWORK, AFTER = "before/", "network/", "after/"


def to_onnx(wrapper: Wrapper, spec: Spec, *, opset: int = OPSET, ir_version: int = IR_VERSION) -> ModelProto:
    """The graph of `wrapper` from `roi` (and `intensity`) to `scores`, with a free batch and the spec's ROI.

    Args:
        wrapper: the network.
        spec: what it was wrapped for.
        opset: of the graph.
        ir_version: of the file.

    Raises:
        ExportError: the network cannot be written as ONNX.
    """
    if not isinstance(wrapper.network, FileNetwork):
        inputs = example_inputs(_traced(spec), TRACED_BATCH)
        return export(
            wrapper,
            inputs,
            input_names=input_names(spec),
            opset=opset,
            ir_version=ir_version,
            multiple=spec.tiling.multiple,
        )
    halves = _before(wrapper, spec, opset), _after(wrapper, spec, opset)
    network = wrapper.network.to_onnx(spec.roi_shape, opset)
    return finished(_joined(halves[0], network, halves[1], str(wrapper.network.path)), ir_version)


def _traced(spec: Spec) -> Spec:
    """The spec with the size at which a network with free sizes is traced."""
    step, size = spec.tiling.multiple, max(spec.tiling.roi_size)
    if step is None:
        return spec
    # Two different sizes of several steps: the exporter takes equal sizes, or a single step, for constants.
    return spec.model_copy(update={"tiling": spec.tiling.over((size + step, size + 2 * step))})


class _Before(nn.Module):
    """The wrapper's part before the network."""

    def __init__(self, wrapper: Wrapper) -> None:
        super().__init__()
        self.wrapper = wrapper

    def forward(self, roi: Tensor, intensity: Tensor | None = None) -> Tensor:
        return self.wrapper.image(roi, intensity)


def _before(wrapper: Wrapper, spec: Spec, opset: int) -> ModelProto:
    inputs = example_inputs(spec, TRACED_BATCH)
    return export(_Before(wrapper), inputs, input_names=input_names(spec), output_names=(IMAGE,), opset=opset)


def _after(wrapper: Wrapper, spec: Spec, opset: int) -> ModelProto:
    logits = torch.zeros(TRACED_BATCH, len(spec.output.labels), *spec.tiling.roi_size)
    return export(wrapper.finish, (logits,), input_names=(LOGITS,), opset=opset)


def _joined(before: ModelProto, network: ModelProto, after: ModelProto, where: str) -> ModelProto:
    """One graph of three; each part's names get a prefix, except for the inputs and the output of the whole."""
    network.ir_version = before.ir_version = after.ir_version = max(IR_VERSION, network.ir_version)
    parts = (
        onnx.compose.add_prefix(before, BEFORE, rename_inputs=False),
        onnx.compose.add_prefix(network, NETWORK),
        onnx.compose.add_prefix(after, AFTER, rename_outputs=False),
    )
    try:
        first = onnx.compose.merge_models(parts[0], parts[1], [(BEFORE + IMAGE, NETWORK + IMAGE)])
        joined: ModelProto = onnx.compose.merge_models(first, parts[2], [(NETWORK + LOGITS, AFTER + LOGITS)])
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(
            f"{where}: the network's graph does not fit the parts before and after it: {error}"
        ) from error
    # Sizes are inferred again with the ROI; the file may have those of another ROI.
    del joined.graph.value_info[:]
    del joined.opset_import[1:]  # each part has brought the same one
    return checked(joined)
