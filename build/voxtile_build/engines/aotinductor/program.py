"""The wrapped network as a program of torch.export, in the precision that is asked for. Compiles nothing.

Reduced precision is PyTorch's autocast: convolutions and products in fp16 or bf16, softmax and final scores in fp32.
Norms sum in fp32 and round their result. What came of it is read from the program, not taken for granted.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from voxtile_build.engines.aotinductor.interface import FREE, INPUTS, NAMES
from voxtile_build.engines.aotinductor.interface import Tensor as Described
from voxtile_build.errors import EngineError, reason_of
from voxtile_build.graph.torch_to_onnx import dynamic_shapes, quiet
from voxtile_build.graph.wrapper import Wrapper, example_inputs
from voxtile_build.networks.file_network import FileNetwork
from voxtile_build.spec.spec import Spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRITON_TYPES = {
    torch.float32: "TYPE_FP32",
    torch.float16: "TYPE_FP16",
    torch.int16: "TYPE_INT16",
    torch.uint8: "TYPE_UINT8",
}
"""Types at the border, of those that the backend of Triton 26.07 takes; it takes no bf16 there."""

COMPUTE = ("convolution", "mm", "addmm", "bmm", "baddbmm")
"""Operators of PyTorch that do nearly all arithmetic; attention, which is one operator, is made of the last ones."""
ATTENTION = "_scaled_dot_product"


class Served(nn.Module):
    """The wrapped network with its products in one precision, on one kind of device."""

    def __init__(self, wrapper: Wrapper, precision: str, device: str) -> None:
        super().__init__()
        self.wrapper = copy.deepcopy(wrapper)  # the reference keeps its own
        network = self.wrapper.network
        # So that its weights are the program's own; a file's program is no submodule of what runs it.
        self.program = network.program if isinstance(network, FileNetwork) else None
        self.precision, self.kind = precision, device
        self.to(device)

    def forward(self, roi: Tensor, intensity: Tensor | None = None) -> Tensor:
        image = self.wrapper.image(roi, intensity)
        with self._cast():
            logits = self.wrapper.logits(image)
        scores: Tensor = self.wrapper.finish(logits.to(torch.float32))
        return scores.contiguous()

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # Its cache is for training; a program must not depend on what ran before.
        return torch.autocast(self.kind, DTYPES[self.precision], cache_enabled=False)


def export_program(wrapper: Wrapper, spec: Spec, precision: str, device: str) -> ExportedProgram:
    """The program, with a free batch unless max_batch_size is 1, and with free slices if the spec asks for them.

    Raises:
        EngineError: the network cannot be exported so.
    """
    batched = spec.serving.max_batch_size > 1
    # Sizes 0 and 1 would be taken for constants.
    examples = tuple(value.to(device) for value in example_inputs(spec, 2 if batched else 1))
    shapes = dynamic_shapes(len(examples), spec.tiling.multiple)
    if not batched:
        shapes = tuple({axis: size for axis, size in shape.items() if axis} for shape in shapes)
    try:
        with quiet(), torch.no_grad():
            served = Served(wrapper, precision, device)
            program: ExportedProgram = torch.export.export(served, examples, dynamic_shapes=shapes)
            # Makes the casts of autocast operators of the program, so that they can be seen.
            program = program.run_decompositions()
    except Exception as error:  # the exporter raises what the network's own code raises
        raise EngineError(f"{spec.name}: torch.export refuses the network ({precision}): {reason_of(error)}") from error
    return program


def check_precision(program: ExportedProgram, promised: str, name: str) -> dict[str, int]:
    """How many convolutions and products compute in each precision.

    Args:
        program: with its decompositions.
        promised: the precision that they must have.
        name: of the model, for errors.

    Raises:
        EngineError: one has another precision than promised, or none has a reduced one.
    """
    words, found = {dtype: word for word, dtype in DTYPES.items()}, Counter[str]()
    for node in program.graph.nodes:
        operator = getattr(node.target, "_opname", "")
        if node.op != "call_function" or not (operator in COMPUTE or operator.startswith(ATTENTION)):
            continue
        value = node.meta["val"]
        dtype = (value if isinstance(value, Tensor) else value[0]).dtype
        if not dtype.is_floating_point:
            continue  # products of indices
        found[words.get(dtype, str(dtype))] += 1
        if dtype != DTYPES[promised]:
            raise EngineError(
                f"{name}: layer '{node.name}' ({operator}) computes in {dtype}, but {promised} was promised: the "
                "network's code chooses its own type; use precision 'fp32', or change the network"
            )
    if not found and promised != "fp32":
        raise EngineError(f"{name}: no layer computes in {promised}: the network has no convolution and no product")
    return dict(found)


def tensors_of(program: ExportedProgram, spec: Spec) -> tuple[tuple[Described, ...], tuple[Described, ...]]:
    """The program's inputs and outputs under Triton's names, as the program itself has them.

    Raises:
        EngineError: the batch is fixed where it must be free, or a type cannot be served.
    """
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    given = [str(node) for node in signature.user_inputs]
    inputs = [_described(name, values[node]) for name, node in zip(INPUTS.values(), given, strict=False)]
    outputs = [_described(NAMES["scores"], values[str(node)]) for node in signature.user_outputs]
    for tensor in (*inputs, *outputs):
        if spec.serving.max_batch_size > 1 and tensor.dims[0] != FREE:
            raise EngineError(
                f"{spec.name}: expected a free batch, found {tensor.name} with the sizes {list(tensor.dims)}: the "
                "network fixes its batch; set serving.max_batch_size = 1"
            )
    return tuple(inputs), tuple(outputs)


def _described(name: str, value: Any) -> Described:
    if not isinstance(value, Tensor) or value.dtype not in TRITON_TYPES:
        raise EngineError(f"{name}: Triton's torch_aoti takes no {getattr(value, 'dtype', type(value).__name__)}")
    sizes = (size if isinstance(size, int) else FREE for size in value.shape)
    return Described(name, TRITON_TYPES[value.dtype], tuple(sizes))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences warnings of PyTorch about itself, which are not for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
