"""PyTorch to ONNX: one file that every server reads, with the same bytes for the same network.

Knows nothing of specs: it takes a module, inputs and names.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx.external_data_helper import convert_model_to_external_data
from torch import Tensor, nn

from voxtile_build.errors import ExportError
from voxtile_build.graph.optimise import simplify

OPSET = 20

IR_VERSION = 10
"""Containers before 26.01 read nothing newer; onnx would write a newer one."""

INLINE_LIMIT = 1_900_000_000
"""Bytes of weights in the file itself: protobuf ends at 2 GiB, and the graph needs room too."""

EXTERNAL_SUFFIX = ".data"
CHANNEL_AXIS = 1

FREE_AXES = 4
"""Axes of [batch, channel, height, width] that may be free, the channel apart; otherwise only the batch is free."""

PRIVATE_FIELDS = ("doc_string", "metadata_props")
"""Fields in which the exporter leaves stack traces with paths of this machine, and names that change."""


def export(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str] = ("roi",),
    output_names: Sequence[str] = ("scores",),
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    multiple: int | None = None,
) -> ModelProto:
    """The graph of `module` with a free first axis (`batch`) and all other axes as in `example_inputs`.

    The graph is checked, its shapes are inferred, and it holds neither paths nor stack traces.

    Args:
        module: the network.
        example_inputs: with a batch of at least 2; the exporter takes sizes 0 and 1 for constants.
        input_names: of the graph.
        output_names: of the graph.
        opset: of the graph.
        ir_version: of the file.
        multiple: if given, the spatial axes of the first input [batch, channel, height, width] and of the outputs are
            free too; their sizes are multiples of this.

    Raises:
        ExportError: the network cannot be traced, or the graph is not what was asked for.
    """
    if any(value.shape[0] < 2 for value in example_inputs):
        raise ExportError("expected example inputs with a batch of 2 or more; a batch of 1 would be fixed")
    model = _trace(module, tuple(example_inputs), input_names, output_names, opset, multiple)
    model = finished(model, ir_version)
    _check_interface(model, input_names, output_names, opset)
    free = () if multiple is None else (input_names[0], *output_names)
    for value in (*model.graph.input, *model.graph.output):
        _check_axes(value, type(module).__name__, free=FREE_AXES if value.name in free else 1)
    return model


def finished(model: ModelProto, ir_version: int = IR_VERSION) -> ModelProto:
    """`model` without paths, stack traces and the exporter's name; it is checked, and its shapes are inferred.

    Raises:
        ExportError: it is not valid ONNX.
    """
    _strip(model)
    model.ir_version = ir_version
    model.producer_name, model.producer_version = "voxtile-build", ""
    _keep_used_opsets(model)
    return checked(model)


def save(model: ModelProto, path: Path, *, inline_limit: int = INLINE_LIMIT) -> tuple[Path, ...]:
    """Writes `model` to `path`. If the weights have more than `inline_limit` bytes, they go to `path`.data beside it.

    Returns:
        The files, that of the graph first.
    """
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= inline_limit:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return (path,)
    data = path.with_name(path.name + EXTERNAL_SUFFIX)
    data.unlink(missing_ok=True)  # onnx appends to a file that exists
    outside = ModelProto()
    outside.CopyFrom(model)
    convert_model_to_external_data(outside, all_tensors_to_one_file=True, location=data.name, size_threshold=1024)
    onnx.save_model(outside, str(path))
    return path, data


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
    multiple: int | None,
) -> ModelProto:
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes(len(inputs), multiple),
                optimize=False,  # `simplify` does the same in a fraction of the time
                verbose=False,
            )
            if program is None:
                raise ExportError("the exporter gave nothing")
            simplify(program.model)
            _rename(program.model.graph.inputs, input_names)
            _rename(program.model.graph.outputs, output_names)
    except Exception as error:  # the exporter raises what the network's own code raises
        raise ExportError(f"{type(module).__name__} cannot be written as ONNX: {_first_line(error)}") from error
    model: ModelProto = program.model_proto
    return model


def _rename(values: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Only after `simplify`: before it, one value may be an input and an output, with one name for both.

    `_check_interface` checks how many there are.
    """
    for value, name in zip(values, names, strict=False):
        value.name = name


def dynamic_shapes(inputs: int, multiple: int | None) -> tuple[dict[int, Any], ...]:
    """Which axes `torch.export` leaves free: the batch of each input, and with `multiple` the sizes of the first."""
    batch = torch.export.Dim("batch")
    shapes: list[dict[int, Any]] = [{0: batch} for _ in range(inputs)]
    if multiple is not None:
        for axis, name in ((2, "height"), (3, "width")):
            steps = torch.export.Dim(name)
            shapes[0][axis] = steps if multiple == 1 else multiple * steps
    return tuple(shapes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter: its warnings about itself and its steps are not for the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # the innermost is about the network
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _strip(message: Any) -> None:
    """Clears the private fields of a protobuf message and of all messages in it."""
    for name in PRIVATE_FIELDS:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                _strip(part)


def _keep_used_opsets(model: ModelProto) -> None:
    used = {"", *(node.domain for node in model.graph.node)}
    used |= {node.domain for function in model.functions for node in function.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def checked(model: ModelProto) -> ModelProto:
    """`model` with inferred shapes.

    Raises:
        ExportError: it is not valid ONNX.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return inferred


def _check_interface(model: ModelProto, input_names: Sequence[str], output_names: Sequence[str], opset: int) -> None:
    found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if found != (list(input_names), list(output_names)):
        raise ExportError(
            f"expected a graph from {list(input_names)} to {list(output_names)}, found {found[0]} to {found[1]}"
        )
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != opset:
        raise ExportError(f"expected opset {opset}, found {versions}; the exporter could not convert the graph")


def _check_axes(value: onnx.ValueInfoProto, network: str, free: int) -> None:
    """Checks that the first `free` axes, the channel apart, are free, and that all others are fixed."""
    axes = value.type.tensor_type.shape.dim
    wanted = [index < free and index != CHANNEL_AXIS for index in range(len(axes))]
    if [bool(axis.dim_param) for axis in axes] != wanted or any(axis.dim_value < 0 for axis in axes):
        expected = "a free batch, height and width" if free > 1 else "a free batch and fixed sizes behind it"
        raise ExportError(
            f"{network}: {value.name}: expected {expected}, found "
            f"{[axis.dim_param or axis.dim_value for axis in axes]}; the "
            "network's code depends on the size of its input in a way that cannot be exported"
        )
