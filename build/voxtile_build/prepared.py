"""Prepares a network for its engines: its graphs, the fp32 reference, and its hashes.

Export and reference take longer than most engines. Models of one build that have the same network and differ only in
what comes after it, such as the precision, therefore share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxtile_build.certificate.certificate import Reference, make_reference
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.wrapper import wrap
from voxtile_build.hashing import file_sha256
from voxtile_build.progress import Step, silent
from voxtile_build.repository.folds import Fold
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.engines import ENGINE_NAMES
from voxtile_build.spec.spec import Spec

NOT_IN_CACHE_KEY: dict[str, Any] = {
    "name": True,
    "title": True,
    "acceptance": set(Acceptance.model_fields) - {"scans"},
    "precision": set(ENGINE_NAMES),
    "serving": {"engines", "default_engine"},
}
"""Fields of a spec that neither the graphs nor the reference depend on."""

CacheKey = tuple[Callable[[], nn.Module], str]


@dataclass(frozen=True)
class Prepared:
    """A network's spec, its graphs, its reference, and the hashes of its weights and of its ONNX file.

    warnings: what the user should know of the network, a sentence each.
    """

    spec: Spec
    graphs: Graphs
    reference: Reference
    hashes: Mapping[str, str]
    warnings: tuple[str, ...] = ()


class Preparer:
    """Prepares networks one after the other, and uses the last result again where the cache key is the same.

    Only the last result is kept: the folds of a cross-validation are different networks and would fill the memory.
    """

    def __init__(self, folder: Path, step: Step = silent) -> None:
        self._folder, self._step = folder, step
        self._last: tuple[CacheKey, Prepared] | None = None

    def __call__(self, fold: Fold, spec: Spec) -> Prepared:
        """Prepare one fold; the files of its graphs go into the folder.

        Args:
            fold: the network.
            spec: the model's, under the fold's name.

        Raises:
            NetworkError: the network cannot be made, or does not fit the spec.
            WeightsError: the weights cannot be used.
            ExportError: the network cannot be written as ONNX.
            ScanError: a scan that the spec names cannot be used.
        """
        key = cache_key(fold, spec)
        if self._last is not None and self._last[0] == key:
            prepared = replace(self._last[1], spec=spec)
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
        hashes = {"weights": weights, "onnx": file_sha256(*graphs.files)}
        return Prepared(spec, graphs, reference, hashes, wrapper.warnings)


def cache_key(fold: Fold, spec: Spec) -> CacheKey:
    """Equal for two folds only if their graphs and references are the same."""
    return fold.load, spec.model_dump_json(exclude=NOT_IN_CACHE_KEY)


def fold_sha256(fold: Fold, spec: Spec) -> str:
    """SHA-256 of a fold's weights; the network is loaded only where no file says it.

    Raises:
        NetworkError, WeightsError: as `Preparer` does.
    """
    known = fold.weights_sha256 or (spec.weights.sha256 if spec.weights else "")
    return known or weights_sha256(spec, wrap(fold.load(), spec).network)


def weights_sha256(spec: Spec, network: nn.Module) -> str:
    """SHA-256 of the spec's weights file; without one, that of the tensors in the order of their names."""
    if spec.weights is not None:
        return spec.weights.sha256
    digest = hashlib.sha256()
    tensors = {**dict(network.named_buffers()), **network.state_dict()}  # also buffers that are not saved
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
