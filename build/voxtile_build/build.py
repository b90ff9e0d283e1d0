"""The build: source -> spec -> network -> wrapper -> ONNX -> precision -> engine -> certificate -> repository.

Importers give the spec and the networks; this module goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from voxtile.card import Card, Certificate, Provenance, StudentOf
from voxtile_build.arrays import Array
from voxtile_build.certificate.certificate import certify, require_accepted, short_form
from voxtile_build.certificate.distillation import notes_of, student_of
from voxtile_build.certificate.fold_mean import write_mean
from voxtile_build.checks import check_tables
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Engine
from voxtile_build.engines.select import compile_at
from voxtile_build.errors import AcceptanceError, BuildError, EngineError, RepositoryError
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.region_order import needs_order, overlaps, with_order
from voxtile_build.graph.report import as_lines
from voxtile_build.importers.network import model_of
from voxtile_build.machine import versions
from voxtile_build.prepared import Prepared, Preparer
from voxtile_build.progress import Step, silent
from voxtile_build.repository.card import card_of, get_card, same_contract
from voxtile_build.repository.config import (
    PLACEHOLDER,
    engine_config,
    public_config,
    read_config,
    write_config,
    write_engine_config,
)
from voxtile_build.repository.entries import entry_name
from voxtile_build.repository.facts import write_facts
from voxtile_build.repository.folds import Model, aggregate, aggregate_sha256
from voxtile_build.repository.model_set import ModelSet, write_set
from voxtile_build.repository.names import check_names, replaced_entries
from voxtile_build.repository.publishing import check_writable, publish, staging
from voxtile_build.repository.volume import check_no_model
from voxtile_build.repository.volumes_in_step import bring_in_step, check_no_volume, check_target
from voxtile_build.spec.spec import Spec, check_done


@dataclass(frozen=True)
class Speed:
    """Seconds for one tile through all folds, each in the fastest run: by an engine, and by PyTorch in fp32."""

    engine: float
    pytorch: float

    def __add__(self, other: Speed) -> Speed:
        return Speed(self.engine + other.engine, self.pytorch + other.pytorch)


@dataclass(frozen=True)
class Published:
    """What one public model consists of.

    Attributes:
        entries: names of the published entries, the public one last.
        card: the card of the public entry.
        speeds: what each engine took on this machine, by its name.
        warnings: what the user should know, a sentence each.
        graph_lines: what each graph pass did, a line each.
        refused: why an engine that was asked for is not among them, by the engine's name.
        volumes: the folders of the entries that segment whole scans with it.
    """

    entries: tuple[str, ...]
    card: Card
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    graph_lines: tuple[str, ...] = ()
    refused: Mapping[str, BuildError] = field(default_factory=dict)
    volumes: tuple[Path, ...] = ()


def build(
    spec: Spec,
    repository: Path,
    *,
    network: nn.Module | None = None,
    engines: Sequence[str] | None = None,
    step: Step = silent,
) -> Published:
    """Build the model of one spec into `repository`; all of its entries appear, or none.

    Engines that violate a limit, or that cannot be made of the network, are left out; see `Published.refused`.

    Args:
        spec: the model.
        repository: a Triton model repository; it is created where it does not exist.
        network: in place of the network that the spec names, with its weights already in it.
        engines: in place of the spec's `serving.engines`. Entries of engines that are not built any more are removed.
        step: is told what the build is doing.

    Raises:
        BuildError: of the kind that says what is wrong, also where no engine is left; `repository` is then unchanged.
    """
    return build_models([model_of(spec, network)], repository, engines=engines, step=step)[0]


def build_models(
    models: Sequence[Model],
    repository: Path,
    *,
    engines: Sequence[str] | None = None,
    step: Step = silent,
    model_set: ModelSet | None = None,
) -> tuple[Published, ...]:
    """Build several public models into `repository`; all of their entries appear, or none.

    Consecutive models with the same `Fold.load` share export and reference if their specs allow it: they may differ in
    precision, for example. Arguments and errors are those of `build`. The last model's public entry appears
    last, and after it that of `model_set`, which some of the models make together.
    """
    for model in models:
        check_done(model.spec)
        student_of(model.spec)
    sets = (model_set,) if model_set else ()
    public = [*(model.spec.name for model in models), *(one.name for one in sets)]
    check_places(models, repository, [one.name for one in sets])
    whole_scans = models[-1].spec.serving.volume
    with staging(repository) as staged:
        check_names(models, repository, [one.name for one in sets])  # again: now no other build can take a name
        prepare = Preparer(staged, step)
        built = tuple(_build_model(model, engines, staged, prepare, step) for model in models)
        built += tuple(_build_set(one, built, staged) for one in sets)
        names = [name for published in built for name in published.entries]
        replaced = dict.fromkeys(name for one in public for name in replaced_entries(one, repository))
        obsolete = [name for name in replaced if name not in names]
        with step("publish"):
            publish(staged, repository, names, obsolete, [one.card.name for one in built if _is_other(one, repository)])
        volumes = bring_in_step(repository, public, public[-1], whole_scans)
    return (*built[:-1], replace(built[-1], volumes=volumes))


def check_places(models: Sequence[Model], repository: Path, sets: Sequence[str] = ()) -> None:
    """Refuse a repository that a build could not publish into, before anything is written.

    Args:
        models: those of one build; none is loaded.
        repository: the model repository.
        sets: public names of sets of the same build.

    Raises:
        SpecError: a name cannot be used, or belongs to another model.
        RepositoryError: the repository cannot be written, or holds another's model of a name that is needed.
    """
    check_writable(repository)
    check_names(models, repository, sets)
    public = [*(model.spec.name for model in models), *sets]
    for name in public:
        check_no_volume(name, repository)
    if models[-1].spec.serving.volume:  # of a cascade or a set, only the last name stands for the whole
        check_no_model(public[-1], repository)
        check_target(public[-1], repository)


def _is_other(published: Published, repository: Path) -> bool:
    """Whether a client must treat the model otherwise than the one that is published under its name.

    The old public entry must then not be seen beside the new engines: a client would prepare scans by the wrong card.
    """
    folder = repository / published.card.name
    try:
        return not same_contract(get_card(read_config(folder), folder), published.card)
    except RepositoryError:  # nothing is published under the name, or nothing that a client could read
        return True


def _build_model(model: Model, engines: Sequence[str] | None, staged: Path, prepare: Preparer, step: Step) -> Published:
    """Every entry of one public model under `staged`."""
    spec, folds, student = model.spec, model.folds, student_of(model.spec)
    chosen = [find_engine(name) for name in dict.fromkeys(engines or spec.serving.engines)]
    check_tables(spec, chosen)
    for engine in chosen:
        engine.require_buildable(spec)
    built, refused = [], dict[str, BuildError]()
    for fold in folds:
        built.append(_build_fold(prepare(fold, model.spec_of(fold)), chosen, staged, step, refused))
        chosen = [engine for engine in chosen if engine.name not in refused]
        if not chosen:
            raise _none_left(refused)
    certificates = {engine.name: aggregate([one.certificates[engine.name] for one in built]) for engine in chosen}
    hashes = {key: aggregate_sha256([one.hashes[key] for one in built]) for key in built[0].hashes}
    spec = with_order(spec, [shared for one in built for shared in one.shared])
    default = _default_engine(spec, chosen)
    card = card_of(spec, default.name, certificates, _provenance(spec, hashes, student))
    entries = [entry_name(fold.name, engine.name) for fold in folds for engine in chosen]
    if len(folds) > 1:
        entries.append(write_mean(spec, len(folds), default.serves_on(spec), staged))
    _write_public(spec, card, [fold.name for fold in folds], staged)
    warnings = (*notes_of(spec), *(warning for one in built for warning in one.warnings))
    lines = tuple(line for one in built for line in one.graph_lines)
    first, *others = (one.speeds for one in built)
    speeds = {engine.name: sum((one[engine.name] for one in others), first[engine.name]) for engine in chosen}
    return Published((*entries, spec.name), card, speeds, warnings, lines, refused)


def _build_set(one: ModelSet, built: Sequence[Published], staged: Path) -> Published:
    """The entry of a set whose models are under `staged`."""
    card = write_set(one, {published.card.name: published.card for published in built}, staged)
    first, *others = (published.speeds for published in built)
    speeds = {engine: sum((other[engine] for other in others), first[engine]) for engine in card.certificates}
    return Published((one.name,), card, speeds)


def _none_left(refused: Mapping[str, BuildError]) -> BuildError:
    """The error of a model of which every engine was refused."""
    errors = list(refused.values())
    missed_limit = any(isinstance(error, AcceptanceError) for error in errors)
    if len(errors) == 1 and not missed_limit:
        return errors[0]
    kind = AcceptanceError if missed_limit else EngineError
    return kind(f"{'; '.join(map(str, errors))}; nothing was published")


@dataclass(frozen=True)
class _BuiltFold:
    """certificates and speeds: by engine; hashes: of the weights and of the ONNX file; the rest as in `Published`.

    shared: where the order of regions must be found, how many voxels each two share on each scan, [region, region].
    """

    certificates: dict[str, Certificate]
    speeds: dict[str, Speed]
    hashes: dict[str, str]
    warnings: tuple[str, ...]
    graph_lines: tuple[str, ...]
    shared: tuple[Array, ...]


def _build_fold(
    prepared: Prepared, chosen: Sequence[Engine], staged: Path, step: Step, refused: dict[str, BuildError]
) -> _BuiltFold:
    """The entries of one network, one an engine. The error of an engine that is refused is put into `refused`."""
    certificates: dict[str, Certificate] = {}
    warnings = [f"{prepared.spec.name}: {warning}" for warning in prepared.warnings]
    speeds: dict[str, Speed] = {}
    for engine in chosen:
        try:
            certificates[engine.name], speeds[engine.name], more = _build_engine(engine, prepared, staged, step)
        except (AcceptanceError, EngineError) as error:
            refused[engine.name] = error
            continue
        warnings += [f"{entry_name(prepared.spec.name, engine.name)}: {warning}" for warning in more]
    lines = tuple(as_lines(prepared.graphs.reports))
    return _BuiltFold(certificates, speeds, dict(prepared.hashes), tuple(warnings), lines, _shared(prepared))


def _shared(prepared: Prepared) -> tuple[Array, ...]:
    if not needs_order(prepared.spec):
        return ()
    return tuple(overlaps(masks(scores, prepared.spec.output)) for _, scores in prepared.reference.scans)


def _build_engine(
    engine: Engine, prepared: Prepared, staged: Path, step: Step
) -> tuple[Certificate, Speed, tuple[str, ...]]:
    """One engine's whole entry under `staged`; its certificate in short, its speed, and warnings for the user."""
    graphs, spec = prepared.graphs, prepared.spec
    entry = _folder(staged / entry_name(spec.name, engine.name))
    version = _folder(entry / str(spec.version))
    started = time.perf_counter()
    with step(f"build {engine.name}"):
        compiled = compile_at(engine, graphs, spec, version)
    compiling = time.perf_counter() - started
    with step(f"certify {engine.name}"):
        certificate = certify(spec, engine, compiled, prepared.reference, prepared.hashes)
    require_accepted(certificate.content)
    digest = certificate.write(version)
    reports = graphs.reports_of(compiled.graphs)
    seconds = {"compile": compiling, **compiled.seconds, **certificate.seconds}
    write_facts(version, seconds, reports, compiled.warnings, prepared.reference.seconds)
    write_engine_config(engine_config(spec, engine, compiled.parameters, engine.accelerators(spec, compiled)), entry)
    own = notes_of(spec)
    warnings = (warning for warning in certificate.content["warnings"] if warning not in own)
    speed = Speed(min(certificate.seconds.values()), prepared.reference.seconds)
    return short_form(certificate.content, digest), speed, tuple(warnings)


def _write_public(spec: Spec, card: Card, folds: Sequence[str], staged: Path) -> None:
    entry = _folder(staged / spec.name)
    # Git and many copying tools drop empty folders.
    (_folder(entry / str(spec.version)) / "README").write_text(PLACEHOLDER, encoding="utf-8")
    write_config(public_config(spec, card, folds), entry)


def _default_engine(spec: Spec, chosen: Sequence[Engine]) -> Engine:
    return next((engine for engine in chosen if engine.name == spec.serving.default_engine), chosen[0])


def _provenance(spec: Spec, hashes: Mapping[str, str], student: StudentOf | None) -> Provenance:
    origin = spec.weights or spec.network
    return Provenance(
        network=spec.network.title,
        weights_sha256=hashes["weights"],
        onnx_sha256=hashes["onnx"],
        source=origin.source,
        licence=origin.licence,
        versions=versions(),
        student_of=student,
    )


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
