"""Lets the tests of one run export a network once: PyTorch's exporter takes a second of CPU and more each time.

What is shared is what the exporter gives for the very same module: its classes, settings and tensors, the inputs, and
what was asked for. A module that cannot be told by its content is exported as ever. It imports torch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from pydantic import BaseModel
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from voxtile_build.graph import torch_to_onnx
from voxtile_build.networks.file_network import FileNetwork

TENSORS = ("_parameters", "_buffers", "_modules")
"""What a module keeps of itself elsewhere than in its other attributes."""

_trace = torch_to_onnx._trace
_folders: list[Path] = []


@functools.cache
def share_operators() -> None:
    """From now on, each export in this process gets a copy of the first one's operators.

    They depend on the opset and on nothing else, and reading them takes longer than a small export.
    """
    read = functools.cache(ONNXRegistry.from_torchlib)

    def shared(**opset: int) -> ONNXRegistry:
        operators = copy.copy(read(**opset))
        operators.functions = {target: list(known) for target, known in operators.functions.items()}
        return operators

    ONNXRegistry.from_torchlib = staticmethod(shared)


@functools.cache
def share_exports(folder: Path) -> None:
    """From now on, the build's exports in this process go into `folder`, and come from there.

    Args:
        folder: of all processes of this run, and of no other run.
    """
    folder.mkdir(exist_ok=True)
    _folders.append(folder)
    torch_to_onnx._trace = _shared_trace


@contextlib.contextmanager
def exported_afresh() -> Iterator[None]:
    """In the block every export is made, for tests of the exporter itself."""
    before, torch_to_onnx._trace = torch_to_onnx._trace, _trace
    try:
        yield
    finally:
        torch_to_onnx._trace = before


def exported_once(module: nn.Module, asked: Sequence[object], make: Callable[[], ModelProto]) -> ModelProto:
    """What `make` gives for `module`, made by the first test of this run that asks for it.

    Args:
        module: the network.
        asked: what else the graph depends on; tensors, and what has a `repr` that tells it.
        make: exports it.
    """
    key = content_of(module, asked) if _folders else None
    if key is None:
        return make()
    file = _folders[-1] / f"{key}.onnx"
    if file.exists():
        return ModelProto.FromString(file.read_bytes())
    made = make()
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(made.SerializeToString())
    partial.replace(file)
    return made


def content_of(module: nn.Module, asked: Sequence[object]) -> str | None:
    """SHA-256 of all that an export depends on; None if an attribute of a module cannot be written down."""
    digest = hashlib.sha256()
    places: dict[int, int] = {}
    try:
        for name, part in module.named_modules(remove_duplicate=False):
            digest.update(_written((name, type(part), _attributes(part))))
            for key, tensor in (*part._parameters.items(), *part._buffers.items()):
                place = places.setdefault(id(tensor), len(places))  # a tensor may be in two places
                digest.update(_written((key, place)) + _bytes_of(tensor))
        for one in asked:
            digest.update(_bytes_of(one) if isinstance(one, Tensor) else repr(one).encode())
    except Exception:  # of classes of a test's own, of functions without a name, of what refers to itself
        return None
    return digest.hexdigest()


def _shared_trace(module: nn.Module, inputs: tuple[Tensor, ...], *asked: Any) -> ModelProto:
    return exported_once(module, ("build", *inputs, *asked), lambda: _trace(module, inputs, *asked))


def _attributes(part: nn.Module) -> dict[str, Any]:
    if isinstance(part, FileNetwork):  # is never traced: its file's graph is put between two that are
        return {"head": part.head}
    return {key: value for key, value in vars(part).items() if key not in TENSORS}


def _bytes_of(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return b"none"
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {list(tensor.shape)} {tensor.requires_grad}".encode() + values.numpy().tobytes()


class _Writer(pickle.Pickler):
    """Writes equal objects as equal bytes, in all processes."""

    def reducer_override(self, obj: Any) -> Any:
        return (type(obj), (obj.model_dump_json(),)) if isinstance(obj, BaseModel) else NotImplemented


def _written(content: object) -> bytes:
    stream = io.BytesIO()
    writer = _Writer(stream)
    writer.fast = True  # else it matters whether two equal strings are one object
    writer.dump(content)
    return stream.getvalue()
