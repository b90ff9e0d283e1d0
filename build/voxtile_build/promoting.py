"""Moves a public name to another version of its model, and back. Builds and measures nothing.

One entry is swapped, in one step: a server sees the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxtile.card import Card
from voxtile_build.certificate.entry_files import read_entry
from voxtile_build.errors import RepositoryError, VerificationError
from voxtile_build.repository.asked import require_model
from voxtile_build.repository.config import read_config
from voxtile_build.repository.digests import are_certified
from voxtile_build.repository.entries import CONFIG, entry_name, fold_names, mean_entry, version_entry, version_of
from voxtile_build.repository.owner import require_own
from voxtile_build.repository.past import Past, past_of
from voxtile_build.repository.publishing import publish, staging
from voxtile_build.repository.versions import (
    Version,
    dependants_of,
    find_version,
    model_of,
    versions_of,
    write_copy,
)
from voxtile_build.repository.volumes_in_step import bring_in_step, check_in_step


@dataclass(frozen=True)
class Move:
    """What a public name stood for before, and what it stands for now; the same where nothing was to be done.

    Before, it stood for None where its entry was gone or damaged.
    """

    before: int | None
    now: int
    card: Card


def promote(name: str, number: int, repository: Path) -> Move:
    """Let the public name `name` stand for the version `number`; the one before stays, as NAME.vN.

    Raises:
        RepositoryError: there is no such model or version, other models need the public name as it is, or the
            repository cannot be written.
        VerificationError: an entry of the version is not what was certified.
    """
    return _move(name, repository, lambda history, public: (number, (*history, *([public] if public else []))))


def rollback(name: str, repository: Path) -> Move:
    """Let the public name `name` stand for what it stood for before the last promotion that was not rolled back.

    Raises:
        RepositoryError: it stood for nothing else, or as `promote` does.
        VerificationError: an entry of that version is not what was certified.
    """

    def last(history: tuple[int, ...], public: int | None) -> tuple[int, tuple[int, ...]]:
        if not history:
            raise RepositoryError(
                f"{repository / name}: expected a version that the name stood for before {public or 'now'}, found "
                f"none; choose one with voxtile-build promote {name} N"
            )
        return history[-1], history[:-1]

    return _move(name, repository, last)


Choice = Callable[[tuple[int, ...], int | None], tuple[int, tuple[int, ...]]]
"""(history, the version that the name stands for) -> the version that it will stand for, and the history then."""


def _move(name: str, repository: Path, choose: Choice) -> Move:
    require_model(name, repository)  # before the repository is made, which a wrong path would name
    with staging(repository) as staged:
        found = versions_of(name, repository)
        public, past = _public(name, found, repository)
        number, history = choose(past.history, None if public is None else public.number)
        wanted = find_version(name, number, found, repository)
        if public is None or number != public.number:
            names = [*_kept(public, staged), name]
            _check_not_needed(name, repository)
            require_own([repository / one for one in names])
            require_certified(wanted, repository)
            check_in_step(repository, [name])
            write_copy(wanted.config, name, staged, past.with_history(history))
            publish(staged, repository, names)
        _bring_in_step(name, number, repository)  # also where the name has moved: what moved it may have been killed
    return Move(None if public is None else public.number, number, wanted.card)


def _public(name: str, found: dict[int, Version], repository: Path) -> tuple[Version | None, Past]:
    """The version that a name stands for, and what it remembers; None where its entry is gone, and others stay."""
    public = None
    try:
        config = read_config(repository / name)
        public = found.get(version_of(config)) if model_of(config, repository / name) == name else None
    except RepositoryError:
        if any(one.card.name == name for one in found.values()):
            return None, Past()
    if public is None:
        raise RepositoryError(
            f"{repository / name}: expected a public model of one network or of folds, found none; versions of "
            "sets, of cascades and of engines' entries do not exist"
        )
    return public, past_of(config)


def _bring_in_step(name: str, number: int, repository: Path) -> None:
    try:
        bring_in_step(repository, [name])
    except RepositoryError as error:
        raise RepositoryError(
            f"{name} stands for version {number}, and its entries for whole scans may not: {error}; "
            f"once this is mended, voxtile-build promote {name} {number} again"
        ) from None


def _kept(public: Version | None, staged: Path) -> list[str]:
    """Writes the own entry of a version that has only the public one, which it loses; gives its name."""
    if public is None or public.entry != public.name:
        return []
    return [write_copy(public.config, version_entry(public.name, public.number), staged)]


def _check_not_needed(name: str, repository: Path) -> None:
    if needed := dependants_of(name, repository):
        raise RepositoryError(
            f"{repository / name}: expected a model that no other one needs, found that {', '.join(needed)} was built "
            "for the version that is public; build that one again, or the new version under another name"
        )


def require_certified(version: Version, repository: Path) -> None:
    """Check that every engine of a version is accepted, and that its files are those that were certified.

    Raises:
        VerificationError: names what is not.
    """
    folds, mean = fold_names(version.config), mean_entry(version.config)
    served = {step.model_name for step in version.config.ensemble_scheduling.step} - {mean}
    if unknown := served - {entry_name(fold, version.card.engine) for fold in folds}:
        raise _unsound(version, f"it sends tiles to {', '.join(sorted(unknown))}, and its card is of another engine")
    for engine, known in version.card.certificates.items():
        entries = [repository / entry_name(fold, engine) for fold in folds]
        if not known.accepted:
            raise _unsound(version, f"{engine} missed a limit of its certificate")
        for entry in entries:
            _check_files(version, entry)
        if not are_certified(entries, known.sha256):
            names = ", ".join(entry.name for entry in entries)
            raise _unsound(version, f"{names}: another certificate than the card names ({known.sha256[:12]}…)")
    if mean is not None:
        _check_files(version, repository / mean)


def _check_files(version: Version, folder: Path) -> None:
    try:
        entry, config = read_entry(folder), read_config(folder)
        fault = next(entry.file_faults(), None)
        if fault is None and (config.name != folder.name or str(version_of(config)) != entry.version.name):
            fault = f"{folder / CONFIG}: is not of the entry and the version that were certified; build it again"
    except (VerificationError, RepositoryError) as error:
        raise _unsound(version, str(error)) from None
    if fault:
        raise _unsound(version, fault)


def _unsound(version: Version, fault: str) -> VerificationError:
    return VerificationError(
        f"{version.name}: version {version.number} is not what was certified, and the public name stays: {fault}"
    )
