"""Opens a network in a file of torch.export.save (.pt2).

PyTorch's own loader may unpickle anything, evaluates sizes as Python and runs compiled code of the package. The package
is therefore searched first, and refused unless it holds only tensors, numbers and known operators.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from onnx.inliner import inline_local_functions

from voxtile_build.errors import ExportError, NetworkError
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
SYMBOL = re.compile(r"[su]\d+")
WORDS = frozenset(
    {"Symbol", "Integer", "Rational", "Float", "positive", "nonnegative", "integer", "True", "False", "Add", "Mul"}
    | {"Max", "Min", "Mod", "FloorDiv", "PythonMod", "CeilDiv", "CleanDiv", "ToFloat", "IntTrueDiv", "oo", "int_oo"}
    | {"Pow", "Eq", "Ne", "Ge", "Gt", "Le", "Lt"}
)
"""Words that sizes may consist of; the loader evaluates sizes."""
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|ge|gt|le|lt|and_|or_|not_)"
)
TREES = re.compile(r'"type": (?!"builtins\.(tuple|list|dict)"|null)')


def open_exported(path: Path, content: bytes) -> Source:
    """The network in a file of torch.export.save, with a free or a fixed batch.

    Args:
        path: names the file in errors.
        content: its bytes.

    Raises:
        NetworkError: the file is damaged, or holds more than tensors and operators.
    """
    _check_package(path, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(content))
    except Exception as error:  # the loader raises many kinds of errors for wrong JSON
        raise NetworkError(
            f"{path}: expected a program of torch.export.save, found what cannot be loaded: {error}"
        ) from error
    image = _image_of(path, program)

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        return between(_graph(path, program, opset), shape, head, str(path))

    first = image.shape[0]
    return Source(program.module(), to_onnx, first if isinstance(first, int) else None)


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


def _check_package(path: Path, content: bytes) -> None:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise NetworkError(f"{path}: expected a package of torch.export.save, found a truncated file or another kind")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if min((part.header_offset for part in archive.infolist()), default=0) > 0:
                # The file is truncated, and what was found is the end of an archive inside it.
                raise zipfile.BadZipFile("it is truncated")
            parts = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise NetworkError(
            f"{path}: expected a whole package of torch.export.save, found a damaged one: {error}"
        ) from None
    for name, data in parts.items():
        inner = name.partition("/")[2]
        if not any(re.fullmatch(pattern, inner) for pattern in MEMBERS):
            raise _unsafe(path, f"{name!r}, which is not part of an exported network")
        if name.endswith(".pt"):
            _check_pickle(path, name, data)
        if name.endswith(".json"):
            _check_json(path, name, data)


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _unsafe(path, f"{name!r}, a pickle of more than tensors: {str(error).splitlines()[0]}") from None


def _check_json(path: Path, name: str, data: bytes) -> None:
    try:
        fields = list(_fields(json.loads(data)))
    except ValueError as error:
        raise NetworkError(f"{path}: {name}: not JSON: {error}") from None
    for key, value in fields:
        if key == "use_pickle" and value:
            raise _unsafe(path, f"{name!r} with pickled tensors")
        if key in ("expr_str", "as_expr") and isinstance(value, str) and not _is_size(value):
            raise _unsafe(path, f"the size {value!r}")
        if key == "target" and isinstance(value, str) and "." in value and not _is_known_target(value):
            raise _unsafe(path, f"the operator {value}; only PyTorch's own can be exported")
        if isinstance(value, str) and '"type": ' in value and TREES.search(value):
            raise _unsafe(path, f"inputs or outputs in other structures than tuples, lists and dictionaries ({key})")


def _is_size(value: str) -> bool:
    words = re.findall(r"[^\W\d]\w*", value)
    plain = re.fullmatch(r"[\w\s()'+\-*/%.,=<>]*", value) is not None
    return plain and all(word in WORDS or SYMBOL.fullmatch(word) for word in words)


def _is_known_target(value: str) -> bool:
    """Targets are operators, and weights by their names in the network."""
    return bool(OPERATORS.fullmatch(value)) or not value.startswith(("torch", "_operator", "math", "#"))


def _fields(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    yield key, value
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _fields(part, name)
    if isinstance(value, list):
        for part in value:
            yield from _fields(part, key)


def _unsafe(path: Path, what: str) -> NetworkError:
    return NetworkError(
        f"{path}: expected tensors and operators only, found {what}; it could run code and is not opened"
    )
