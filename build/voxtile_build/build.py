"""The build as one function: spec -> network -> wrapper -> ONNX -> engines -> certificates -> published entries."""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from voxtile_build.certificate.certificate import FILE as CERTIFICATE
from voxtile_build.certificate.certificate import certify, require_accepted, short_form
from voxtile_build.certificate.fold_mean import write_mean
from voxtile_build.engines.base import Engine, find_engine
from voxtile_build.engines.select import compile_at, require_buildable
from voxtile_build.engines.tensorrt.variants import accelerator
from voxtile_build.errors import RepositoryError, SpecError
from voxtile_build.free_sizes import require_free_sizes
from voxtile_build.graph.passes import PassReport
from voxtile_build.graph.report import as_json, as_lines
from voxtile_build.hashing import file_sha256
from voxtile_build.importers.files.file_network import open_network
from voxtile_build.machine import versions
from voxtile_build.networks import make_network
from voxtile_build.networks.heads import OneHead
from voxtile_build.networks.weights import load_weights
from voxtile_build.prepared import Prepared, Preparer, Step, silent
from voxtile_build.repository.card import card_of, check_card
from voxtile_build.repository.config import (
    PLACEHOLDER,
    engine_config,
    entry_name,
    fold_names,
    get_card,
    public_config,
    read_config,
    set_card,
    write_config,
)
from voxtile_build.repository.folds import Fold, Model, aggregate, aggregate_sha256
from voxtile_build.repository.names import check_names, entries_of
from voxtile_build.repository.publishing import publish, staging
from voxtile_build.spec.spec import Spec

BUILD_FACTS = "build.json"


@dataclass(frozen=True)
class Published:
    """The names of the entries that were published, the public one last, and the card that it carries.

    notes: what the user should know of them, a sentence each; graphs: what each graph pass did, a line each.
    """

    entries: tuple[str, ...]
    card: dict[str, Any]
    notes: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()


def build(
    spec: Spec,
    repository: Path,
    *,
    network: nn.Module | None = None,
    engines: Sequence[str] | None = None,
    step: Step = silent,
) -> Published:
    """Build every engine's entry and the public one into `repository`; all of them appear, or none.

    network: in place of the one that the spec names, with its weights already in it (importers use this).
    engines: in place of `serving.engines`. Entries of engines that are not built any more are removed.
    Raises a BuildError of the kind that says what is wrong; then `repository` is as it was.
    """

    def load() -> nn.Module:
        return network if network is not None else load_network(spec)

    # A network by file has its weights in that file, whose checksum is the network's.
    model = Model(spec, (Fold(spec.name, load, spec.network.sha256),))
    return build_models([model], repository, engines=engines, step=step)[0]


def build_models(
    models: Sequence[Model], repository: Path, *, engines: Sequence[str] | None = None, step: Step = silent
) -> tuple[Published, ...]:
    """Build every entry of several public models into `repository`; all of them appear, or none.

    Models that follow each other with the same `Fold.load` and differ in precision, say, share export and reference.
    Takes and raises what `build` does. The last model's public entry appears last.
    """
    check_names(models, repository)
    with staging(repository) as staged:
        prepare = Preparer(staged, step)
        built = tuple(_build_model(model, engines, staged, prepare, step) for model in models)
        names = [name for published in built for name in published.entries]
        obsolete = [name for model in models for name in entries_of(model.spec.name, repository) if name not in names]
        with step("publish"):
            publish(staged, repository, names, obsolete)
    return built


def _build_model(model: Model, engines: Sequence[str] | None, staged: Path, prepare: Preparer, step: Step) -> Published:
    """Every entry of one public model under `staged`."""
    spec, folds = model.spec, model.folds
    chosen = [find_engine(name) for name in dict.fromkeys(engines or spec.serving.engines)]
    require_free_sizes(spec, [engine.name for engine in chosen])
    for engine in chosen:
        require_buildable(engine, spec)
    built = [_build_fold(prepare(fold, model.spec_of(fold)), chosen, staged, step) for fold in folds]
    certificates = {engine.name: aggregate([one.certificates[engine.name] for one in built]) for engine in chosen}
    hashes = {key: aggregate_sha256([one.hashes[key] for one in built]) for key in built[0].hashes}
    card = card_of(spec, _point(spec, chosen), certificates, _provenance(spec, hashes))
    entries = [entry_name(fold.name, engine.name) for fold in folds for engine in chosen]
    if len(folds) > 1:
        entries.append(write_mean(spec, len(folds), staged))
    _write_public(spec, card, [fold.name for fold in folds], staged)
    notes, graphs = (tuple(line for one in built for line in getattr(one, name)) for name in ("notes", "graphs"))
    return Published((*entries, spec.name), card, notes, graphs)


@dataclass(frozen=True)
class _BuiltFold:
    """certificates: the short form by engine; hashes: of its weights and its ONNX file; notes and graphs: as in
    `Published`."""

    certificates: dict[str, dict[str, Any]]
    hashes: dict[str, str]
    notes: tuple[str, ...]
    graphs: tuple[str, ...]


def _build_fold(prepared: Prepared, chosen: Sequence[Engine], staged: Path, step: Step) -> _BuiltFold:
    """One network's entries, one an engine."""
    graphs, certificates, notes = prepared.graphs, {}, []
    for engine in chosen:
        with step(f"build and certify {engine.name}"):
            certificates[engine.name], more = _build_engine(engine, prepared, staged)
            notes += [f"{entry_name(graphs.spec.name, engine.name)}: {note}" for note in more]
    return _BuiltFold(certificates, dict(prepared.hashes), tuple(notes), tuple(as_lines(graphs.reports)))


def load_network(spec: Spec) -> nn.Module:
    """The network that the spec names, with its weights.

    Raises NetworkError, WeightsError, or SpecError where a network with weights has none in the spec.
    """
    chosen = spec.network
    if chosen.file is not None and chosen.sha256 is not None:
        return open_network(chosen.file, chosen.sha256, chosen.head, spec.serving.max_batch_size)
    channels, classes = len(spec.input.channels), len(spec.output.labels)
    network = make_network(spec.network.name, spec.network.args, channels, classes)
    if spec.weights is not None:
        load_weights(network, spec.weights.file, spec.weights.sha256)
    elif any(True for _ in network.parameters()):
        raise SpecError(f"{spec.name}: weights: missing; {spec.network.name} needs [weights] with file and sha256")
    return network if chosen.head is None else OneHead(network, chosen.head)


def point(name: str, engine: str, repository: Path) -> dict[str, Any]:
    """Let the public entry `name` stand for another of its engines, atomically; returns the new card.

    Raises RepositoryError where the entry or the engine is not there, or the engine's certificate is not the one
    that the card was made with.
    """
    with staging(repository):
        folder = repository / name
        config = read_config(folder)
        card = get_card(config, folder)
        known = card["certificates"]
        if engine not in known:
            raise RepositoryError(f"{folder}: expected one of its engines {', '.join(known)}, found {engine!r}")
        entries = [repository / entry_name(fold, engine) for fold in fold_names(config)]
        _check_certificates(entries, known[engine]["sha256"])
        card["engine"] = engine
        check_card(card)
        set_card(config, card)
        write_config(config, folder)
    return card


def _build_engine(engine: Engine, prepared: Prepared, staged: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One engine's whole entry under `staged`; returns the short form of its certificate, and notes for the user."""
    graphs, spec = prepared.graphs, prepared.graphs.spec
    entry = _folder(staged / entry_name(spec.name, engine.name))
    version = _folder(entry / str(spec.version))
    begun = time.perf_counter()
    compiled = compile_at(engine, graphs, version)
    compiling = time.perf_counter() - begun
    certificate = certify(spec, engine, compiled, prepared.reference, prepared.hashes)
    require_accepted(certificate.content)
    digest = certificate.write(version)
    reports = graphs.graph_reports(engine.name, compiled.precision)
    _write_facts(version, {"compile": compiling, **certificate.seconds}, reports, compiled.notes)
    # TensorRT builds an engine for shapes that are known; slices of any size go to the CUDA provider.
    sized = spec.tiling.multiple is None
    accelerated = engine.name == "onnxruntime" and spec.serving.gpus != "none" and sized
    accelerators = {"tensorrt": accelerator(compiled.files[0], spec)} if accelerated else {}
    write_config(engine_config(spec, engine, compiled.parameters, accelerators), entry)
    return short_form(certificate.content, digest), compiled.notes


def _write_facts(
    folder: Path, seconds: Mapping[str, float], reports: Mapping[str, Sequence[PassReport]], notes: Sequence[str]
) -> None:
    """What changes from build to build stands in a file of its own: all others are reproducible."""
    facts = {
        "graphs": as_json(reports),
        "notes": list(notes),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    (folder / BUILD_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _write_public(spec: Spec, card: Mapping[str, Any], folds: Sequence[str], staged: Path) -> None:
    entry = _folder(staged / spec.name)
    # Git and many copying tools drop empty folders.
    (_folder(entry / str(spec.version)) / "README").write_text(PLACEHOLDER, encoding="utf-8")
    write_config(public_config(spec, card, folds), entry)


def _point(spec: Spec, chosen: Sequence[Engine]) -> str:
    names = [engine.name for engine in chosen]
    return spec.serving.default_engine if spec.serving.default_engine in names else names[0]


def _provenance(spec: Spec, hashes: Mapping[str, str]) -> dict[str, Any]:
    weights = spec.weights
    return {
        "network": spec.network.title,
        "weights_sha256": hashes["weights"],
        "onnx_sha256": hashes["onnx"],
        "source": weights.source if weights else "",
        "licence": weights.licence if weights else "",
        "versions": versions(),
    }


def _check_certificates(entries: Sequence[Path], expected: str) -> None:
    """`expected`: the digest of the folds' certificates together; each entry may hold several versions."""
    found = [[file_sha256(file) for file in entry.glob(f"*/{CERTIFICATE}")] for entry in entries]
    if expected not in (aggregate_sha256(digests) for digests in itertools.product(*found)):
        shown = ", ".join(digest[:12] + "…" for digests in found for digest in digests) or "none"
        raise RepositoryError(
            f"{', '.join(map(str, entries))}: expected the certificate {expected[:12]}… that the card was made with, "
            f"found {shown}; build the model again"
        )


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
