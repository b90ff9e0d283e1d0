"""Drafts a spec of a network in a file: it is run once to see its channels, its labels and a size that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from voxtile_build.errors import SourceError, reason_of
from voxtile_build.importers.files.open import KINDS
from voxtile_build.importers.initial.draft import Draft, draft_of, in_words
from voxtile_build.networks.file_network import Source
from voxtile_build.networks.weights import sha256_of_file
from voxtile_build.sessions import open_session

SIZES = (96, 64, 128, 32, 48, 80, 112, 160, 192, 224, 256, 512)
"""Voxels along each axis that are tried, the usual ones first."""
LARGEST_3D = 192


def draft(path: Path, name: str, folder: Path) -> Draft:
    """The spec of a network in a file.

    Args:
        path: .onnx, .pt or .ts (TorchScript), .pt2 (torch.export).
        name: the public name.
        folder: of the spec.

    Raises:
        NetworkError: the file cannot be opened.
        SourceError: the network takes none of the usual sizes.
    """
    content = path.read_bytes()
    source = KINDS[path.suffix](path, content)
    wanted = _wanted(path, content, source)
    shape, outputs = _run(path, source, wanted)
    todo = []
    fields: dict[str, Any] = {
        "network": {"file": str(path.resolve()), "sha256": sha256_of_file(path, "network")},
        "inferer": {"roi_size": list(shape[1:])},
    }
    if None in wanted[1:]:
        todo.append(f"inferer.roi_size: the network runs at {list(shape[1:])}; give the size of training's patches")
    if len(outputs) > 1:
        fields["network"]["head"] = 0
        shapes = [list(output.shape[1:]) for output in outputs]
        todo.append(
            f"network.head: the network has {len(outputs)} outputs of shapes {shapes}; say which has the scores"
        )
    if _are_probabilities(outputs[0]):
        fields["network"]["output"] = "probabilities"
        todo.append("network.output: noise gives values from 0 to 1, so the network seems to end in softmax or sigmoid")
    if source.batch is not None:
        fields["serving"] = {"max_batch_size": source.batch}
    classes = int(outputs[0].shape[1])
    what = f"{path}: a network in a file ({in_words(len(shape) - 1, shape[0], classes)})"
    return draft_of(name, folder, what, fields, shape[0], classes, todo)


def _wanted(path: Path, content: bytes, source: Source) -> list[int | None]:
    """[channel, *spatial] of the input as far as the file says it."""
    if path.suffix == ".onnx":
        (image, *_) = open_session(content).get_inputs()
        return [size if isinstance(size, int) else None for size in image.shape[1:]]
    run = source.run
    assert isinstance(run, nn.Module)
    for node in run.graph.nodes if isinstance(run, fx.GraphModule) else ():
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and value.ndim >= 4:
            return [size if isinstance(size, int) else None for size in value.shape[1:]]
    first = next((one for one in run.state_dict().values() if one.ndim in (4, 5)), None)
    if first is None:
        raise SourceError(
            f"{path}: expected a network that begins with a convolution, found none; write the spec by hand"
        )
    return [int(first.shape[1]), *(None,) * (first.ndim - 2)]


def _run(path: Path, source: Source, wanted: Sequence[int | None]) -> tuple[tuple[int, ...], list[Tensor]]:
    """A shape [channel, *spatial] that the network takes, and what it gives for it."""
    failed: Exception | None = None
    for shape in _shapes(wanted):
        try:
            with torch.no_grad():
                given = source.run(torch.randn(source.batch or 1, *shape, generator=torch.Generator().manual_seed(0)))
        except Exception as error:  # every kind of file raises kinds of its own
            failed = error
            continue
        outputs = list(given) if isinstance(given, list | tuple) else [given]
        if all(isinstance(one, Tensor) and one.ndim == len(shape) + 1 for one in outputs):
            return shape, outputs
        raise SourceError(
            f"{path}: expected scores [batch, label, *spatial] for an image of {list(shape)}, found something else; "
            "save the network behind a module that gives the scores alone"
        )
    raise SourceError(f"{path}: the network takes none of the usual sizes: {reason_of(failed)}; write the spec by hand")


def _are_probabilities(scores: Tensor) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1 and scores.max() > scores.min())


def _shapes(wanted: Sequence[int | None]) -> Iterator[tuple[int, ...]]:
    channels, axes = wanted[0] or 1, wanted[1:]
    for size in SIZES if None in axes else SIZES[:1]:
        if len(axes) < 3 or size <= LARGEST_3D:
            yield channels, *(axis or size for axis in axes)
