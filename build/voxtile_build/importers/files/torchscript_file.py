"""Opens a network in a TorchScript file.

torch.export takes no ScriptModule, and its converter (TS2EPConverter) fails at loops and computed sizes. The graph
therefore comes from PyTorch's older exporter, which is deprecated. It may write a wrong graph without an error, so the
results of every graph are compared with those of the file.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto

from voxtile_build.arrays import Array
from voxtile_build.errors import ExportError, NetworkError
from voxtile_build.importers.files.onnx_file import between
from voxtile_build.networks.file_network import IMAGE, LOGITS, Source
from voxtile_build.networks.float64 import in_float64
from voxtile_build.networks.heads import choose
from voxtile_build.sessions import open_session

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
    _check_archive(path, content)
    try:
        with _quiet():
            load: Any = torch.jit.load  # it has no types
            module = load(io.BytesIO(content), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise NetworkError(
            f"{path}: expected TorchScript, found what PyTorch cannot load: {_first_line(error)}"
        ) from None

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        return _graph(path, module, shape, opset, head)

    return Source(module, to_onnx, None)


def _check_archive(path: Path, content: bytes) -> None:
    """TorchScript is a zip with code and constants; a state dict or a whole module of torch.save is a pickle."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise NetworkError(
            f"{path}: expected TorchScript (a zip of torch.jit.save), found a truncated file or one of another kind"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
        raise NetworkError(
            f"{path}: expected TorchScript (torch.jit.save), found a pickle of torch.save, which could run code and "
            "is not opened; give a state dict in [weights] beside network.name, or save torch.jit.trace(network, image)"
        )


def _graph(path: Path, module: Any, shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
    if opset > NEWEST_OPSET:
        raise ExportError(f"{path}: TorchScript goes to ONNX up to opset {NEWEST_OPSET}, found {opset} asked for")
    stream: Any = io.BytesIO()  # the older exporter writes to streams, which its types do not say
    example = torch.zeros(2, *shape)
    with torch.no_grad():
        count = _count(module(example))
    outputs = [f"{LOGITS}_{index}" for index in range(count)]
    try:
        with _quiet(), torch.no_grad():
            # Freezing removes branches and loops over constants, and changes no numbers.
            frozen = torch.jit.freeze(module, optimize_numerics=False)
            torch.onnx.export(
                frozen,
                (example,),
                stream,
                dynamo=False,
                opset_version=opset,
                input_names=[IMAGE],
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (IMAGE, *outputs)},
            )
    except Exception as error:  # the exporter raises its own kinds and those of TorchScript
        raise ExportError(
            f"{path}: this TorchScript cannot be written as ONNX: {_first_line(error)}; {ADVICE}"
        ) from error
    model = between(onnx.load_from_string(stream.getvalue()), shape, head, str(path))
    require_same(path, module, model, shape, head)
    return model


ADVICE = "save torch.jit.trace(network, image) in place of a scripted network, or give a .pt2 or .onnx file"


def _count(outputs: Any) -> int:
    return len(outputs) if isinstance(outputs, list | tuple) else 1


def require_same(path: Path, module: Any, model: ModelProto, shape: Sequence[int], head: int | None) -> None:
    """Refuse a graph that is not the file's network.

    Args:
        path: names the file in errors.
        module: the network.
        model: the graph from `image` to `logits`.
        shape: [channel, *spatial] of the image.
        head: which output is `logits`.

    Raises:
        ExportError: it gives other results, by more than rounding.
    """
    for batch in BATCHES:
        image = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        try:
            with torch.no_grad():
                expected = choose(module(image), head).numpy()
            found = open_session(model).run([LOGITS], {IMAGE: image.numpy()})[0]
        except Exception as error:  # both sides raise kinds of their own
            raise ExportError(f"{path}: fails at a batch of {batch}: {_first_line(error)}; {ADVICE}") from error
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
    """Without the warnings of TorchScript and its exporter that they are deprecated."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
