"""Opens a network in a TorchScript file.

torch.export takes no ScriptModule, and its converter (TS2EPConverter) fails at loops and computed sizes. The graph
therefore comes from PyTorch's older exporter, which is deprecated, or where that fails from the operators that the
network runs. Either may be wrong without an error, so the results of every graph are compared with those of the file.
"""

from __future__ import annotations

import ast
import ctypes
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto

from voxtile_build.arrays import Array
from voxtile_build.errors import ExportError, NetworkError, reason_of
from voxtile_build.graph.torch_to_onnx import export
from voxtile_build.importers.files.archive import pack, read_archive, refuse_others, unsafe
from voxtile_build.importers.files.onnx_file import between
from voxtile_build.importers.files.torchscript_operators import DataDependentError, record
from voxtile_build.networks.file_network import IMAGE, LOGITS, Source
from voxtile_build.networks.float64 import in_float64
from voxtile_build.networks.heads import choose
from voxtile_build.sessions import open_session

MEMBERS = (
    r"(data|constants)\.pkl",
    r"(data|constants)/\d+",
    r"code/[^/]+(/[^/]+)*\.py",
    r"(version|byteorder|\.data/[^/]+)",
)
"""Files of an archive of torch.jit.save; any other could be read in place of those that are checked."""
LEFT_OUT = (r"code/.*\.debug_pkl", r"extra/.*", r"traced_inputs(\.pkl|/\d+)")
"""Notes for people, and examples of inputs."""
ARCHIVE = "TorchScript (a zip of torch.jit.save)"
FORBIDDEN = re.compile(r"from_file|save|classes|rpc_\w*")
"""Names that a network does not need."""
NAMESPACES = ("prim", "prims", "aten")
"""PyTorch's own operators."""
STDOUT = 1
BATCHES = (1, 3)
TOLERANCE = 1e-4
"""Share of the largest value by which results may differ whatever the network: another order of sums."""
TIMES_PYTORCH = 10
"""Where that is missed, ONNX may be this many times as far from float64 as fp32 PyTorch; a wrong graph is further."""
NEWEST_OPSET = 20
"""The newest opset that the older exporter writes."""


def open_torchscript(path: Path, content: bytes) -> Source:
    """The network in a file of torch.jit.save.

    Args:
        path: names the file in errors.
        content: its bytes.

    Raises:
        NetworkError: the file is damaged, or is a pickle (torch.save), which could run code.
    """
    checked = _checked(path, content)
    try:
        with _quiet():
            load: Any = torch.jit.load  # it has no types
            module = load(io.BytesIO(checked), map_location="cpu").eval()
    except Exception as error:  # a damaged file raises many kinds of errors
        raise NetworkError(
            f"{path}: expected TorchScript, found what PyTorch cannot load: {reason_of(error)}"
        ) from None

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        return _graph(path, module, shape, opset, head)

    return Source(module, to_onnx, None)


def _checked(path: Path, content: bytes) -> bytes:
    """TorchScript is a zip with code and constants; a state dict or a whole module of torch.save is a pickle."""
    members = read_archive(path, content, ARCHIVE)
    if "constants.pkl" not in members or not any(name.startswith("code/") for name in members):
        raise NetworkError(
            f"{path}: expected TorchScript (torch.jit.save), found a pickle of torch.save, which could run code and "
            "is not opened; give a state dict in [weights] beside network.name, or save torch.jit.trace(network, image)"
        )
    refuse_others(path, members, (*MEMBERS, *LEFT_OUT))
    needed = {name: data for name, data in members.items() if not any(re.fullmatch(one, name) for one in LEFT_OUT)}
    for name, data in needed.items():
        if name.endswith(".py"):
            _check_code(path, name, data)
        if name.endswith(".pkl") and re.search(rb"torch\.classes|classes\.", data):
            raise unsafe(path, f"{name!r} with objects that are written in C++")
    return pack(needed)


def _check_code(path: Path, name: str, data: bytes) -> None:
    """Code of TorchScript is a part of Python. It runs when the file is loaded, and could write files."""
    try:
        parts = list(ast.walk(ast.parse(data)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NetworkError(
            f"{path}: {name}: expected code of TorchScript, found what cannot be read: {error}"
        ) from None
    for part in parts:
        found = part.attr if isinstance(part, ast.Attribute) else part.id if isinstance(part, ast.Name) else ""
        if FORBIDDEN.fullmatch(found):
            raise unsafe(path, f"{found!r} in {name}, which reads or writes files, or starts other code")
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "ops" and found not in NAMESPACES:
            raise unsafe(path, f"operators of {found!r} in {name}")


def _graph(path: Path, module: Any, shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
    """The graph by PyTorch's older exporter, or else by the operators that run; the first reason if neither will do."""
    if opset > NEWEST_OPSET:
        raise ExportError(f"{path}: TorchScript goes to ONNX up to opset {NEWEST_OPSET}, found {opset} asked for")
    batch, count = _traced(path, module, shape)
    example, outputs = torch.zeros(batch, *shape), [f"{LOGITS}_{index}" for index in range(count)]
    failed: ExportError | None = None
    for write in (_by_exporter, _by_operators) if batch > 1 else (_by_exporter,):
        try:
            model = between(_written(path, write, module, example, opset, outputs), shape, head, str(path))
            require_same(path, module, model, shape, head, BATCHES if batch > 1 else (1,))
            return model
        except ExportError as error:
            failed = error if failed is None or isinstance(error, DataDependentError) else failed
    assert failed is not None
    raise failed


Write = Callable[[Any, torch.Tensor, int, Sequence[str]], ModelProto]


def _written(
    path: Path, write: Write, module: Any, example: torch.Tensor, opset: int, outputs: Sequence[str]
) -> ModelProto:
    try:
        with _quiet(), torch.no_grad():
            return write(module, example, opset, outputs)
    except DataDependentError as error:
        raise DataDependentError(f"{path}: {error}") from error
    except Exception as error:  # the exporters raise their own kinds and those of TorchScript
        raise ExportError(
            f"{path}: this TorchScript cannot be written as ONNX: {reason_of(error)}; {ADVICE}"
        ) from error


def _by_exporter(module: Any, example: torch.Tensor, opset: int, outputs: Sequence[str]) -> ModelProto:
    stream: Any = io.BytesIO()  # the older exporter writes to streams, which its types do not say
    torch.onnx.export(
        # Freezing removes branches and loops over constants, and changes no numbers.
        torch.jit.freeze(module, optimize_numerics=False),
        (example,),
        stream,
        dynamo=False,
        opset_version=opset,
        input_names=[IMAGE],
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch"} for name in (IMAGE, *outputs)} if len(example) > 1 else None,
    )
    return onnx.load_from_string(stream.getvalue())


def _by_operators(module: Any, example: torch.Tensor, opset: int, outputs: Sequence[str]) -> ModelProto:
    return export(record(module, example), (example,), input_names=(IMAGE,), output_names=outputs, opset=opset)


ADVICE = (
    "save torch.jit.trace(network.eval(), image) in place of a scripted network or of one that was traced while it "
    "trained, or give a .pt2 or .onnx file"
)


def _traced(path: Path, module: Any, shape: Sequence[int]) -> tuple[int, int]:
    """The batch to trace with, and the number of outputs. With a batch of 1 the exporter takes it for a constant."""
    failed: Exception | None = None
    for batch in (2, 1):
        try:
            with torch.no_grad():
                outputs = module(torch.zeros(batch, *shape))
            return batch, len(outputs) if isinstance(outputs, list | tuple) else 1
        except Exception as error:  # TorchScript raises the kinds of its operators
            failed = error
    raise NetworkError(f"{path}: the network does not run: {reason_of(failed)}") from failed


def require_same(
    path: Path,
    module: Any,
    model: ModelProto,
    shape: Sequence[int],
    head: int | None,
    batches: Sequence[int] = BATCHES,
) -> None:
    """Refuse a graph that is not the file's network.

    Args:
        path: names the file in errors.
        module: the network.
        model: the graph from `image` to `logits`.
        shape: [channel, *spatial] of the image.
        head: which output is `logits`.
        batches: that the network takes.

    Raises:
        ExportError: it gives other results, by more than rounding.
    """
    for batch in batches:
        image = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        try:
            with torch.no_grad():
                expected = choose(module(image), head).numpy()
            found = open_session(model).run([LOGITS], {IMAGE: image.numpy()})[0]
        except Exception as error:  # both sides raise kinds of their own
            raise ExportError(f"{path}: fails at a batch of {batch}: {reason_of(error)}; {ADVICE}") from error
        if found.shape != expected.shape or not _is_same(module, image, head, expected, found):
            raise ExportError(f"{path}: written as ONNX, this TorchScript gives other results; {ADVICE}")


def _is_same(module: Any, image: torch.Tensor, head: int | None, expected: Array, found: Array) -> bool:
    """Whether `found` is `expected` but for rounding: where PyTorch itself is off, ONNX may be, too."""
    usual = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if np.abs(found - expected).max() <= usual:
        return True
    outputs = in_float64(module, image)
    if outputs is None:
        return False
    truth = choose(outputs, head).numpy()
    pytorch, ours = (float(np.abs(scores - truth).max()) for scores in (expected, found))
    return ours <= max(usual, TIMES_PYTORCH * pytorch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that TorchScript is deprecated, and without the graph that the exporter prints in C++."""
    sys.stdout.flush()
    _flush_c()
    kept = os.dup(STDOUT)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), STDOUT)
            yield
    finally:
        _flush_c()
        os.dup2(kept, STDOUT)
        os.close(kept)


def _flush_c() -> None:
    """C has a buffer of its own for what it prints."""
    ctypes.CDLL(None).fflush(None)
