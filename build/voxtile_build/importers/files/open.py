"""Opens a network in a file of any kind: ONNX, TorchScript or a program of torch.export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from voxtile_build.errors import NetworkError
from voxtile_build.importers.files.exported_file import open_exported
from voxtile_build.importers.files.onnx_file import open_onnx
from voxtile_build.importers.files.torchscript_file import open_torchscript
from voxtile_build.networks.file_network import FileNetwork, Source
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
    network = FileNetwork(path, KINDS[path.suffix](path, path.read_bytes()), head)
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
