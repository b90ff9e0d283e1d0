"""Opens a network in a file of torch.export.save (.pt2).

PyTorch's own loader may unpickle anything, evaluates sizes as Python, makes code of names and runs compiled code of the
package. It is therefore given a package that is written again from what was checked: tensors, numbers, plain names and
known operators.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from onnx.inliner import inline_local_functions

from voxtile_build.errors import ExportError, NetworkError
from voxtile_build.importers.files.archive import pack, read_archive, refuse_others
from voxtile_build.importers.files.exported_json import clean_json
from voxtile_build.importers.files.onnx_file import between
from voxtile_build.networks.file_network import IMAGE, LOGITS, Source

MEMBERS = (
    r"models/[^/]+\.json",
    r"data/weights/(weight_\d+|[^/]+_config\.json)",
    r"data/constants/(tensor_\d+|[^/]+_config\.json)",
    r"data/sample_inputs/[^/]+\.pt",
    r"(archive_format|archive_version|version|byteorder|\.data/[^/]+)",
)
"""Files of a package of torch.export.save; any other (compiled libraries, custom objects) is refused."""
PACKAGE = "a package of torch.export.save"


def open_exported(path: Path, content: bytes) -> Source:
    """The network in a file of torch.export.save, with a free or a fixed batch.

    Args:
        path: names the file in errors.
        content: its bytes.

    Raises:
        NetworkError: the file is damaged, or holds more than tensors and operators.
    """
    cleaned = _cleaned(path, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(cleaned))
    except Exception as error:  # the loader raises many kinds of errors for wrong JSON
        raise NetworkError(
            f"{path}: expected a program of torch.export.save, found what cannot be loaded: {error}"
        ) from error
    image = _image_of(path, program)

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        return between(_graph(path, program, opset), shape, head, str(path))

    first = image.shape[0]
    # Guards are code. They check inputs, which the wrapper makes.
    return Source(program.module(check_guards=False), to_onnx, first if isinstance(first, int) else None)


def _image_of(path: Path, program: Any) -> Any:
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in names]
    if len(nodes) != 1 or nodes[0].meta["val"].dtype != torch.float32 or nodes[0].meta["val"].ndim < 4:
        raise NetworkError(f"{path}: expected one input [batch, channel, *spatial] in float32, found {list(names)}")
    return nodes[0].meta["val"]


def _graph(path: Path, program: Any, opset: int) -> ModelProto:
    from voxtile_build.graph.torch_to_onnx import quiet

    outputs = [f"{LOGITS}_{index}" for index in range(len(program.graph_signature.user_outputs))]
    try:
        with quiet(), torch.no_grad():
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[IMAGE],
                output_names=outputs,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{path}: this program cannot be written as ONNX: {reason}") from error
    if found is None:
        raise ExportError(f"{path}: this program cannot be written as ONNX: the exporter gave nothing")
    model: ModelProto = found.model_proto
    return inline_local_functions(model) if model.functions else model


def _cleaned(path: Path, content: bytes) -> bytes:
    """The package with what a network needs, and nothing else."""
    members = read_archive(path, content, PACKAGE)
    refuse_others(path, members, MEMBERS)
    for name, data in members.items():
        if name.endswith(".json"):
            members[name] = clean_json(path, name, data)
        if name.endswith(".pt"):
            members[name] = b""  # examples of inputs, a pickle that a network does not need
    return pack(members)
