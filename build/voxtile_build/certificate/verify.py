"""Verifies a public model: compares hashes of its files, and measures its engines again.

Needs neither weights nor PyTorch, because the reference is stored beside each certificate. Through a running server it
is the acceptance test of the machine that serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxtile.card import Card, PartModel
from voxtile.triton.connection import ConnectionConfig
from voxtile_build.arrays import Array, Runner
from voxtile_build.certificate.archive import Stored, unpack
from voxtile_build.certificate.entry_files import CertifiedEntry, read_entry
from voxtile_build.certificate.limits import violations
from voxtile_build.certificate.mean_error import error_of, mean_error
from voxtile_build.certificate.served import CONNECTION, ServedRunner, require_server
from voxtile_build.certificate.stitched_scan import stitch
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.engines import find_engine
from voxtile_build.errors import AcceptanceError, EngineError, RepositoryError, VerificationError
from voxtile_build.evaluation.evaluate import (
    Record,
    check_finite,
    compare_masks,
    describe,
    measure_tiles,
    run_tiles,
)
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.summary import summary
from voxtile_build.evaluation.tiles import Tile
from voxtile_build.machine import versions
from voxtile_build.progress import Step, silent
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config, warm_up_sizes
from voxtile_build.repository.digests import are_certified
from voxtile_build.repository.entries import entry_name, fold_names, mean_entry, mean_name
from voxtile_build.repository.folds import aggregate_sha256


@dataclass(frozen=True)
class Served:
    """A model on a running server: its address, the card of the model's public entry, and how to reach it."""

    url: str
    card: Card
    connection: ConnectionConfig = CONNECTION


def verify(
    name: str,
    repository: Path,
    url: str | None = None,
    *,
    scans: bool = True,
    step: Step = silent,
    connection: ConnectionConfig = CONNECTION,
) -> tuple[Verdict, ...]:
    """Verify every entry behind a public model: that of each engine and fold, and the one that averages folds.

    A cascade's first stage and the models of a set are verified with it.

    Args:
        name: the public name.
        repository: the model repository.
        url: HOST:PORT of the gRPC service of a Triton that serves the repository: its entries are then measured, the
            public one too. Without it, the files are opened in this process where the engine allows that; the public
            entry, which only a server can run, is left out.
        scans: whether the stored scan is run too.
        step: is told which entry is measured.
        connection: how to reach the server.

    Returns:
        A verdict for each entry. An entry whose files are not the certified ones is not run.

    Raises:
        RepositoryError: the model is not in the repository.
        VerificationError: no server answers at `url`.
    """
    folder = repository / name
    config = read_config(folder)
    card = get_card(config, folder)
    also = partial(verify, repository=repository, url=url, scans=scans, step=step, connection=connection)
    if card.parts:
        found = [one for part in card.parts.models for one in also(part.model)]
        return (*found, _verify_set(card, card.parts.models, repository))
    verdicts = list(also(card.previous_stage)) if card.previous_stage else []
    folds = fold_names(config)
    served = None if url is None else Served(url, card.model_copy(update={"name": name}), connection)
    if served:
        require_server(served.url, served.connection)
    for engine, known in card.certificates.items():
        entries = [repository / entry_name(fold, engine) for fold in folds]
        faults = _digest_faults(entries, known.sha256)
        for entry in entries:
            with step(f"verify {entry.name}"):
                verdicts.append(verify_entry(entry, served, scans=scans, faults=faults))
    if len(folds) > 1:
        verdicts.append(_verify_mean(repository / (mean_entry(config) or mean_name(name)), served))
    if served:
        verdicts.append(_verify_public([repository / entry_name(fold, card.engine) for fold in folds], served))
    return tuple(verdicts)


def version_warnings(name: str, repository: Path) -> tuple[str, ...]:
    """A line for every package whose version here differs from the one that a certificate of the model was made with.

    Raises:
        RepositoryError: the model is not in the repository.
    """
    config = read_config(repository / name)
    card = get_card(config, repository / name)
    lines: list[str] = []
    before = [part.model for part in card.parts.models] if card.parts else []
    for model in (*before, *([card.previous_stage] if card.previous_stage else [])):
        lines += version_warnings(model, repository)
    for entry in (entry_name(fold, engine) for fold in fold_names(config) for engine in card.certificates):
        with contextlib.suppress(VerificationError):  # `verify` reports it
            lines += _version_differences(read_entry(repository / entry).certificate["versions"])
    return tuple(dict.fromkeys(lines))


def _version_differences(certified: Mapping[str, str]) -> Iterator[str]:
    here = versions()
    for package, version in certified.items():
        release = version.partition("-")[0]  # OpenVINO's own version goes on with that of the build
        if package in here and here[package] != release:
            yield f"{package}: certified with {release}, here is {here[package]}"


def _digest_faults(entries: Sequence[Path], expected: str) -> tuple[str, ...]:
    if are_certified(entries, expected):
        return ()
    return (
        f"expected the certificate that the model card names ({expected[:12]}…), found another; build the model again",
    )


def _verify_set(card: Card, parts: Sequence[PartModel], repository: Path) -> Verdict:
    """The entry of a set: its models must be those that it was built with, with the same certificates."""
    faults = []
    models = [get_card(read_config(repository / part.model), repository / part.model) for part in parts]
    for part, model in zip(parts, models, strict=True):
        if model.provenance.weights_sha256 != part.weights_sha256:
            faults.append(f"{part.model}: expected the weights that the set was built with, found others")
    for engine, known in card.certificates.items():
        digests = [model.certificates[engine].sha256 for model in models if engine in model.certificates]
        if len(digests) != len(models) or aggregate_sha256(digests) != known.sha256:
            faults.append(f"{engine}: expected the certificates that the set was built with, found others")
    return Verdict(card.name, tuple(f"{fault}; build the set again" for fault in faults))


def verify_entry(
    folder: Path, served: Served | None = None, *, scans: bool = True, faults: tuple[str, ...] = ()
) -> Verdict:
    """Verify the entry of one engine of one fold: its files, then what it gives now.

    Args:
        folder: of the entry.
        served: the server that runs it; without one, the files are opened in this process.
        scans: whether the stored scan is run too.
        faults: what is known to be wrong with it; it is then not run.
    """
    try:
        entry = read_entry(folder)
        faults = (*faults, *entry.file_faults())
    except VerificationError as error:
        return Verdict(folder.name, (*faults, str(error)))
    certified = entry.certificate["metrics"]
    if faults:
        return Verdict(entry.name, faults, {}, certified)
    try:
        metrics, device_kind, device = _measured(entry, served, scans)
    except (AcceptanceError, EngineError, VerificationError) as error:
        return Verdict(entry.name, (str(error),), {}, certified)
    violated = tuple(violations(metrics, entry.certificate["acceptance"]))
    unseen = tuple(entry.certificate.get("unseen_labels", ()))
    return Verdict(entry.name, violated, metrics, certified, unseen, device_kind, device)


def _measured(entry: CertifiedEntry, served: Served | None, scans: bool) -> tuple[dict[str, float], str, str]:
    """The metrics of the certificate, measured again; kind and name of the device, if a server runs the entry."""
    stored = unpack(entry.samples)
    engine, most = entry.certificate["engine"], stored.spec.serving.max_batch_size
    tiles: list[Record] = []
    with _runner(entry, served) as run:
        for batch in warm_up_sizes(most):
            tiles += measure_tiles(
                stored.spec,
                engine,
                run,
                stored.tiles,
                batch,
                spacing=stored.spacing,
                stride=stored.stride,
                once=1 < batch < most,
            )[0]
        records = [_measured_scan(stored, engine, run)] if scans and stored.scan else []
        device = (run.device_kind, run.device) if isinstance(run, ServedRunner) else ("", "")
    return summary(tiles, records), *device


def _measured_scan(stored: Stored, engine: str, run: Runner) -> Record:
    if stored.scan is None:
        raise VerificationError("the stored reference has no scan")
    (scan, wanted), spec = stored.scan, stored.spec
    batch = spec.serving.max_batch_size
    found = stitch(scan, spec, run, batch)
    check_finite(found, spec, engine, f"scan '{scan.name}'")
    return {**describe(scan, batch), **compare_masks(wanted, masks(found, spec.output), spec.output, scan.spacing)}


def _verify_mean(folder: Path, served: Served | None) -> Verdict:
    """The entry that averages folds, measured against NumPy again."""
    try:
        entry = read_entry(folder)
        if faults := tuple(entry.file_faults()):
            return Verdict(entry.name, faults)
        config = read_config(folder)
        with _runner(entry, served) as run:
            error, limit = mean_error(config, run)
    except (EngineError, RepositoryError, VerificationError) as problem:
        return Verdict(folder.name, (str(problem),))
    faults = () if error <= limit else (f"max_abs_error: expected at most {limit:g}, found {error:g}",)
    return Verdict(entry.name, faults, {"max_abs_error": error}, entry.certificate["metrics"])


def _verify_public(entries: Sequence[Path], served: Served) -> Verdict:
    """The public entry: it must give what the entries give that the card names, or their mean.

    The limit is rounding, which tells one engine from another. A server that puts requests of other clients into the
    same batch may differ by more than that.
    """
    name = served.card.name
    try:
        stored = unpack(read_entry(entries[0]).samples)
        tile = most_varied(stored)
        found = _answer(served, name, stored, tile)
        names_of = find_engine(served.card.engine).tensor_name
        behind = [_answer(served, entry.name, stored, tile, names_of) for entry in entries]
    except VerificationError as error:
        return Verdict(name, (str(error),))
    if any(found.shape != scores.shape or found.dtype != scores.dtype for scores in behind):
        kinds = " and ".join(f"{scores.dtype} {list(scores.shape)}" for scores in (*behind, found))
        return Verdict(name, (f"expected scores of the type and shape that the entries behind it give, found {kinds}",))
    most, limit = error_of(found, behind)
    names = " and ".join(entry.name for entry in entries)
    faults = (
        () if most <= limit else (f"expected the scores of {names} within {limit:g}, found a difference of {most:g}",)
    )
    return Verdict(name, faults, {"max_abs_error": most})


def most_varied(stored: Stored) -> Tile:
    """The tile whose scores vary most: a corner of a scan is often air, for which all engines give the same scores."""

    def spread(scores: Array) -> float:
        return float(scores.reshape(len(scores), -1).std(axis=1, dtype=float).max())

    return max(stored.tiles, key=lambda pair: spread(pair[1]))[0]


def _answer(served: Served, entry: str, stored: Stored, tile: Tile, tensor_name: Callable[[str], str] = str) -> Array:
    """Scores of the tile by an entry of the server."""
    with ServedRunner(served.url, served.card, entry, tensor_name, served.connection) as run:
        return run_tiles([tile], stored.spec, run)


@contextlib.contextmanager
def _runner(entry: CertifiedEntry, served: Served | None) -> Iterator[Runner]:
    if served is None:
        yield open_entry(entry)
        return
    engine = find_engine(entry.certificate["engine"])
    with ServedRunner(served.url, served.card, entry.name, engine.tensor_name, served.connection) as run:
        yield run


def open_entry(entry: CertifiedEntry) -> Runner:
    """The engine of an entry, opened in this process.

    Raises:
        EngineError: this process cannot open it.
        RepositoryError: its config.pbtxt cannot be read.
    """
    parameters = {key: value.string_value for key, value in read_config(entry.folder).parameters.items()}
    facts = entry.certificate.get("precision_facts", {})
    return find_engine(entry.certificate["engine"]).open(entry.version, parameters, facts)
