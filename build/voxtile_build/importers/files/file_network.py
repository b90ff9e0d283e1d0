"""A network that comes as one file: ONNX, TorchScript or a program of torch.export.

Such a network runs as it is, which makes it the reference that engines are measured against, and gives its graph as
ONNX, which is then put between the wrapper's two halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor, nn

from voxtile_build.errors import NetworkError
from voxtile_build.networks.heads import choose
from voxtile_build.networks.weights import check_sha256

IMAGE, LOGITS = "image", "logits"


@dataclass(frozen=True)
class Source:
    """What a kind of file gives.

    run: image [batch, channel, *spatial] float32 -> the file's outputs. to_onnx: (shape of the image without the
    batch, opset, head) -> graph from `image` to `logits`. batch: the only size it takes, None where it is free.
    """

    run: Callable[[Tensor], Any]
    to_onnx: Callable[[Sequence[int], int, int | None], ModelProto]
    batch: int | None


class FileNetwork(nn.Module):
    """`image` [batch, channel, *spatial] float32 -> `logits` [batch, label, *spatial], by the file's own graph."""

    def __init__(self, path: Path, source: Source, head: int | None) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: programs of torch.export refuse train() and eval().
        self._source = (source,)
        self.path, self.head = path, head

    def forward(self, image: Tensor) -> Tensor:
        return choose(self._source[0].run(image), self.head)

    @property
    def batch(self) -> int | None:
        """The only batch size that the file takes; None where it is free."""
        return self._source[0].batch

    def to_onnx(self, shape: Sequence[int], opset: int) -> ModelProto:
        """The file's graph from `image` [batch, *shape] to `logits`, with the weights that it has.

        Raises ExportError where it cannot be had in this opset.
        """
        return self._source[0].to_onnx(shape, opset, self.head)


def open_network(path: Path, sha256: str, head: int | None, max_batch_size: int) -> FileNetwork:
    """The network in `path`, whose ending says of which kind it is: .onnx, .pt (or .ts, TorchScript), .pt2.

    Raises NetworkError for another kind, a damaged file, one that could run code of its own, and one that does not
    take batches up to `max_batch_size`; WeightsError where the file cannot be read or has another SHA-256.
    """
    from voxtile_build.importers.files.exported_file import open_exported
    from voxtile_build.importers.files.onnx_file import open_onnx
    from voxtile_build.importers.files.torchscript_file import open_torchscript

    kinds: dict[str, Callable[[Path, bytes], Source]] = {
        ".onnx": open_onnx,
        ".pt": open_torchscript,
        ".ts": open_torchscript,
        ".pt2": open_exported,
    }
    if path.suffix not in kinds:
        raise NetworkError(f"{path}: network.file: expected one of {', '.join(kinds)}, found {path.suffix or 'none'!r}")
    check_sha256(path, sha256, "network")
    network = FileNetwork(path, kinds[path.suffix](path, path.read_bytes()), head)
    _check_batch(network, max_batch_size)
    return network


def _check_batch(network: FileNetwork, max_batch_size: int) -> None:
    if network.batch is None or network.batch == max_batch_size == 1:
        return
    advice = "set serving.max_batch_size = 1, or " if network.batch == 1 else ""
    raise NetworkError(
        f"{network.path}: serving.max_batch_size: the file takes a batch of {network.batch} and no other, found "
        f"max_batch_size {max_batch_size}; {advice}export the network again with a free batch"
    )
