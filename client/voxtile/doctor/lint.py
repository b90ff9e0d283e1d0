"""Examines repositories for a release and a machine: every check, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.doctor.checks.cards import check_card, check_reached
from voxtile.doctor.checks.certificates import check_certificates
from voxtile.doctor.checks.config import check_config
from voxtile.doctor.checks.engines import check_engine, check_plans_together
from voxtile.doctor.checks.ensemble import check_ensemble
from voxtile.doctor.checks.exposure import check_options, check_release
from voxtile.doctor.checks.host import check_host, check_numpy
from voxtile.doctor.checks.layout import check_repository, check_twice
from voxtile.doctor.checks.values import check_values
from voxtile.doctor.checks.versions import check_versions, is_copy
from voxtile.doctor.checks.volumes import BACKEND, check_volume
from voxtile.doctor.entry import CONFIG, Entry, Repository, read_repository
from voxtile.doctor.finding import Finding
from voxtile.doctor.machine import Machine
from voxtile.doctor.releases import Release


@dataclass(frozen=True)
class Server:
    """What is to serve.

    Attributes:
        release: of Triton.
        machine: None where it is another than this one.
        options: further options of tritonserver, as on a command line; None where they are not known.
        engines: the folder of packages that `voxtile-server --engines` gets; None without one.
    """

    release: Release
    machine: Machine | None = None
    options: str | None = None
    engines: Path | None = None


def lint(folders: Sequence[Path], server: Server) -> Iterator[Finding]:
    """Examines repositories that one server serves together.

    The repository of entries for whole scans that lies beside one (`NAME-volume`) is examined with it.

    Args:
        folders: the repositories.
        server: what is to serve them.

    Raises:
        InputError: the options are no command line.
    """
    yield from check_release(server.release)
    repositories: list[Repository] = []
    for folder in _with_volumes(folders):
        try:
            if (folder / CONFIG).is_file():
                yield _one_model(folder)
                continue
            repositories.append(read_repository(folder, embedded=server.release.embedded))
        except OSError as error:
            yield _no_repository(folder, error)
    entries: dict[str, Entry] = {}
    for repository in repositories:
        yield from check_repository(repository, server.release)
        entries = {**repository.entries, **entries}
    yield from check_twice(repositories)
    for entry in entries.values():
        yield from _entry(entry, entries, server)
    yield from check_reached(entries)
    yield from check_plans_together(entries)
    yield from check_numpy(server.engines, entries, server.release)
    if server.machine is not None:
        yield from check_host(entries, server.release, server.machine)
    if server.options is not None:
        scans = any(entry.backend == BACKEND for entry in entries.values())
        yield from check_options(server.options, server.release, whole_scans=scans)
    for repository in repositories:
        yield _summary(repository, server.release)


def is_repository(folder: Path) -> bool:
    """Whether a folder holds at least one model's folder."""
    return next(folder.glob("*/config.pbtxt"), None) is not None


def _entry(entry: Entry, entries: Mapping[str, Entry], server: Server) -> Iterator[Finding]:
    yield from check_values(entry, server.release)
    yield from check_config(entry, server.release)
    ensemble = list(check_ensemble(entry, entries, server.release))
    yield from ensemble
    yield from check_card(entry, entries)
    yield from check_versions(entry, entries)
    yield from check_engine(entry, server.release, server.machine)
    whole = not any(finding.severity == "error" for finding in ensemble)
    if not is_copy(entry, entries):
        yield from check_certificates(entry, entries, server.release, server.machine, whole=whole)
    yield from check_volume(entry, entries)


def _with_volumes(folders: Sequence[Path]) -> list[Path]:
    """The folders, each once, and after each the folder of entries for whole scans beside it."""
    found: dict[str, Path] = {}
    for folder in folders:
        beside = Path(f"{os.path.abspath(folder)}-volume")
        for one in (folder, *([beside] if beside.is_dir() else [])):
            found.setdefault(os.path.realpath(one), one)
    return list(found.values())


def _no_repository(folder: Path, error: OSError) -> Finding:
    return Finding(
        "error",
        "no-repository",
        str(folder),
        f"expected a folder of models, found none ({error.strerror})",
        "Triton does not start without it",
        "give the folder that voxtile-build wrote (--repository)",
    )


def _one_model(folder: Path) -> Finding:
    return Finding(
        "error",
        "no-repository",
        str(folder),
        f"expected a folder of models, found the folder of one ({CONFIG} lies in it)",
        "Triton would take its versions for models",
        f"give the folder above: {Path(os.path.abspath(folder)).parent}",
    )


def _summary(repository: Repository, release: Release) -> Finding:
    names = repository.entries
    public = sum(entry.card is not None for entry in names.values())
    return Finding(
        "ok",
        "examined",
        str(repository.folder),
        f"{len(names)} entries, {public} of them with a card, examined for {release.title}",
    )
