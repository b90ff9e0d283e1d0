"""Opens a network in a file of any kind: ONNX, TorchScript or a program of torch.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor

from voxtile_build.errors import NetworkError
from voxtile_build.importers.files.exported_file import open_exported
from voxtile_build.importers.files.onnx_file import open_onnx
from voxtile_build.importers.files.onnx_opset import TOLERANCE
from voxtile_build.importers.files.torchscript_file import TIMES_PYTORCH, open_torchscript
from voxtile_build.networks.file_network import FileNetwork, Source
from voxtile_build.networks.float64 import in_float64
from voxtile_build.networks.heads import choose
from voxtile_build.networks.weights import check_sha256

KINDS: dict[str, Callable[[Path, bytes], Source]] = {
    ".onnx": open_onnx,
    ".pt": open_torchscript,
    ".ts": open_torchscript,
    ".pt2": open_exported,
}


def open_network(path: Path, sha256: str, head: int | None, max_batch_size: int) -> FileNetwork:
    """The network in a file; the ending of its name says of which kind it is.

    Args:
        path: the file: .onnx, .pt or .ts (TorchScript), .pt2 (torch.export).
        sha256: of the file.
        head: which of several outputs holds the logits.
        max_batch_size: the largest batch that the network must take.

    Raises:
        NetworkError: another kind of file, a damaged one, one that could run code of its own, or one that does not
            take batches up to `max_batch_size`.
        WeightsError: the file cannot be read, or has another SHA-256.
    """
    if path.suffix not in KINDS:
        raise NetworkError(f"{path}: network.file: expected one of {', '.join(KINDS)}, found {path.suffix or 'none'!r}")
    check_sha256(path, sha256, "network")
    source = KINDS[path.suffix](path, path.read_bytes())
    _check_batch(path, source.batch, max_batch_size)
    return FileNetwork(path, _with_checked_batches(path, source, max_batch_size), head)


def _check_batch(path: Path, batch: int | None, max_batch_size: int) -> None:
    if batch is None or batch == max_batch_size == 1:
        return
    advice = "set serving.max_batch_size = 1, or " if batch == 1 else ""
    raise NetworkError(
        f"{path}: serving.max_batch_size: the file takes a batch of {batch} and no other, found "
        f"max_batch_size {max_batch_size}; {advice}export the network again with a free batch"
    )


def _with_checked_batches(path: Path, source: Source, max_batch_size: int) -> Source:
    """`source`, whose graph is given only if the samples of a batch go through it as each would alone.

    A file may promise a free batch and have the batch that it was traced with inside.
    """

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        if max_batch_size > 1:
            _check_samples(path, source, shape, head, max_batch_size)
        return source.to_onnx(shape, opset, head)

    return replace(source, to_onnx=to_onnx)


def _check_samples(path: Path, source: Source, shape: Sequence[int], head: int | None, max_batch_size: int) -> None:
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([choose(source.run(image[None]), head) for image in images])
        try:
            together = choose(source.run(images), head)
        except Exception:  # every kind of file raises kinds of its own
            _check_batch(path, 1, max_batch_size)
            raise
    if together.shape != alone.shape or not _differ_by_rounding(source, images, head, alone, together):
        raise NetworkError(
            f"{path}: serving.max_batch_size: expected each sample of a batch to give what it gives alone, found that "
            "the network mixes them, as one does that was traced with a batch of 1 or while it trained; set "
            "serving.max_batch_size = 1, or export the network again in evaluation mode and with a free batch"
        )


def _differ_by_rounding(source: Source, images: Tensor, head: int | None, alone: Tensor, together: Tensor) -> bool:
    """Whether two results of fp32 differ by no more than rounding: where one is off from float64, the other may be."""
    usual, found = _tolerance(alone), float((together - alone).abs().max())
    if found <= usual:
        return True
    outputs = [in_float64(source.run, image[None]) for image in images]
    if any(output is None for output in outputs):
        return False
    truth = torch.cat([choose(output, head) for output in outputs])
    return found <= TIMES_PYTORCH * float((alone - truth).abs().max())


def _tolerance(values: Tensor) -> float:
    return TOLERANCE * max(1.0, float(values.abs().max()))
