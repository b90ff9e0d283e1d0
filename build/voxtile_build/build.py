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
from voxtile_build.prepared import Prepared, Preparer, fold_sha256
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
from voxtile_build.repository.entries import entry_name, fold_names
from voxtile_build.repository.facts import write_facts
from voxtile_build.repository.folds import Model, aggregate, aggregate_sha256
from voxtile_build.repository.model_set import ModelSet, write_set
from voxtile_build.repository.names import check_names, inner_names, replaced_entries
from voxtile_build.repository.owner import require_own
from voxtile_build.repository.publishing import check_writable, publish, staging
from voxtile_build.repository.versions import Release, check_no_versions, release_of
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
        public: the version that the public name goes on standing for, where this one is another.
    """

    entries: tuple[str, ...]
    card: Card
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    graph_lines: tuple[str, ...] = ()
    refused: Mapping[str, BuildError] = field(default_factory=dict)
    volumes: tuple[Path, ...] = ()
    public: int | None = None


def build(
    spec: Spec,
    repository: Path,
    *,
    network: nn.Module | None = None,
    engines: Sequence[str] | None = None,
    step: Step = silent,
) -> Published:
    """Build the model of one spec into `repository`; all of its entries appear, or none.

    A model of this name with other weights, or that takes scans otherwise, becomes a version beside those that are
    there, and the public name stays where it is. The very model again, or a version that the spec asks for, takes the
    place of the one that is there.

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
    last, and after it that of `model_set`, which some of the models make together. Several models replace those of
    their names: they have no versions.
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
        if len(public) == 1 and (release := _release(models[0], repository)) is not None:
            return (_build_version(models[0], release, engines, repository, staged, prepare, step),)
        built = tuple(_build_model(model, engines, staged, prepare, step) for model in models)
        built += tuple(_build_set(one, built, staged) for one in sets)
        names = [name for published in built for name in published.entries]
        replaced = dict.fromkeys(name for one in public for name in replaced_entries(one, repository))
        obsolete = [name for name in replaced if name not in names]
        with step("publish"):
            withdrawn = [one.card.name for one in built if _is_other(one.card, repository / one.card.name)]
            publish(staged, repository, names, obsolete, withdrawn)
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
    if len(public) > 1:
        check_no_versions(public, repository)
    for name in public:
        check_no_volume(name, repository)
    if models[-1].spec.serving.volume:  # of a cascade or a set, only the last name stands for the whole
        check_no_model(public[-1], repository)
        check_target(public[-1], repository)


def _is_other(card: Card, folder: Path) -> bool:
    """Whether a client must treat the model of `card` otherwise than the one in the public entry `folder`.

    The old public entry must then not be seen beside the new engines: a client would prepare scans by the wrong card.
    """
    try:
        return not same_contract(get_card(read_config(folder), folder), card)
    except RepositoryError:  # nothing is published under the name, or nothing that a client could read
        return True


def _release(model: Model, repository: Path) -> Release | None:
    """Which version a model becomes; None where it is the only one."""
    spec = model.spec

    def same(card: Card) -> bool:
        """Whether a card is that of the very model: the same weights in the same network, with the same contract."""
        hashes = {"weights": aggregate_sha256([fold_sha256(fold, model.spec_of(fold)) for fold in model.folds])}
        provenance = _provenance(spec, {**hashes, "onnx": ""}, None)
        ours = card_of(spec, card.engine, {}, provenance)
        found_later = {"region_order"} if needs_order(spec) else set()
        networks = [(one.provenance.network, one.provenance.weights_sha256) for one in (card, ours)]
        return networks[0] == networks[1] and same_contract(card, ours, found_later)

    return release_of(spec.name, spec.version if "version" in spec.model_fields_set else None, same, repository)


def _build_version(
    model: Model,
    release: Release,
    engines: Sequence[str] | None,
    repository: Path,
    staged: Path,
    prepare: Preparer,
    step: Step,
) -> Published:
    """Build and publish one version of a model that has, or gets, several."""
    own = model.as_version(release.base, release.number)
    require_own([repository / one for one in (release.base, *inner_names(release.base, [f.name for f in own.folds]))])
    built = _build_model(own, engines, staged, prepare, step, release.name)
    public = release.write_public(staged)
    names = [*built.entries[:-1], *public]
    old = () if release.replaced is None else inner_names(release.base, fold_names(release.replaced.config))
    with step("publish"):
        withdrawn = [name for name in public if _is_other(built.card, repository / name)]
        publish(staged, repository, names, [name for name in old if name not in names], withdrawn)
    own_scans = (release.name, model.spec.serving.volume) if release.is_public else (None, None)
    volumes = bring_in_step(repository, [release.name], *own_scans)
    return replace(built, entries=tuple(names), volumes=volumes, public=None if release.is_public else release.public)


def _build_model(
    model: Model,
    engines: Sequence[str] | None,
    staged: Path,
    prepare: Preparer,
    step: Step,
    public: str | None = None,
) -> Published:
    """Every entry of one public model under `staged`; its card names it `public` where its entries are called else."""
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
    card = card.model_copy(update={"name": public or spec.name})
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
