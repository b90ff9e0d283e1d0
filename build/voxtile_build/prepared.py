"""A network made ready for its engines: its graphs, what fp32 PyTorch says of its tiles and scans, its hashes.

Models of one build that take the same network and differ in what comes after it alone, such as the precision, share it:
the export and the reference take longer than most engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxtile_build.certificate.certificate import Reference, make_reference
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.wrapper import wrap
from voxtile_build.hashing import file_sha256
from voxtile_build.repository.folds import Fold
from voxtile_build.spec.spec import Spec

Step = Callable[[str], AbstractContextManager[None]]
"""Called with what is being done; the context lasts as long as it takes."""

NOT_IN_CACHE_KEY: dict[str, Any] = {
    "name": True,
    "title": True,
    "acceptance": {"max_abs_error", "max_logit_error", "min_dice", "max_changed"},
    "precision": {"openvino", "onnxruntime", "tensorrt"},
    "serving": {"engines", "point"},
}
"""What of a spec neither graphs nor reference depend on."""


@contextmanager
def silent(_: str) -> Iterator[None]:
    """A step that tells nobody."""
    yield


@dataclass(frozen=True)
class Prepared:
    """hashes: of the weights and of the ONNX file."""

    graphs: Graphs
    reference: Reference
    hashes: Mapping[str, str]


class Preparer:
    """Prepares networks one after the other; what one leaves serves the next, where that is the same network.

    No more than one is held: the folds of a cross-validation are networks of their own, and would fill the memory.
    """

    def __init__(self, folder: Path, step: Step = silent) -> None:
        self._folder, self._step = folder, step
        self._last: tuple[object, Prepared] | None = None

    def __call__(self, fold: Fold, spec: Spec) -> Prepared:
        """`member` under `spec`, which bears its name; the graphs' files lie in the folder.

        Raises what loading, wrapping and exporting raise; ScanError where a scan of the spec cannot be used.
        """
        key = fold.load, spec.model_dump_json(exclude=NOT_IN_CACHE_KEY)
        if self._last is not None and self._last[0] == key:
            known = self._last[1]
            prepared = Prepared(known.graphs.under(spec), known.reference, known.hashes)
        else:
            self._last = None  # frees it before the next one is made
            prepared = self._prepare(fold, spec)
        self._last = key, prepared
        return prepared

    def _prepare(self, fold: Fold, spec: Spec) -> Prepared:
        with self._step(f"load {spec.name}"):
            wrapper = wrap(fold.load(), spec)
        files = self._folder / f"{spec.name}.onnx"
        files.mkdir()
        with self._step("export to ONNX"):
            graphs = Graphs(wrapper, spec, files)
        weights = fold.weights_sha256 or weights_sha256(spec, wrapper.network)
        with self._step("run the reference in PyTorch"):
            reference = make_reference(wrapper, spec)
        return Prepared(graphs, reference, {"weights": weights, "onnx": file_sha256(*graphs.files)})


def weights_sha256(spec: Spec, network: nn.Module) -> str:
    """Of the weights file; of the tensors themselves, in order of their names, where there is no file."""
    if spec.weights is not None:
        return spec.weights.sha256
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    return digest.hexdigest()
