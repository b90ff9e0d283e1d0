"""Moves a public name to another version of its model, and back. Builds and measures nothing.

One entry is swapped, in one step: a server sees the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxtile.card import Card
from voxtile.errors import InputError
from voxtile.triton.connection import ConnectionConfig, connect, control_headers
from voxtile_build.certificate.entry_files import read_entry
from voxtile_build.errors import RepositoryError, VerificationError
from voxtile_build.repository.config import read_config
from voxtile_build.repository.digests import are_certified
from voxtile_build.repository.entries import entry_name, fold_names, mean_entry, version_entry, version_of
from voxtile_build.repository.owner import require_own
from voxtile_build.repository.publishing import publish, staging
from voxtile_build.repository.versions import (
    Version,
    dependants_of,
    history_of,
    in_words,
    model_of,
    versions_of,
    write_copy,
)
from voxtile_build.repository.volumes_in_step import bring_in_step

LOADING_S = 600.0
"""Seconds that a server may take to load one entry with its engines."""


@dataclass(frozen=True)
class Move:
    """What a public name stood for before, and what it stands for now; the same where nothing was to be done."""

    before: int
    now: int
    card: Card


def promote(name: str, number: int, repository: Path) -> Move:
    """Let the public name `name` stand for the version `number`; the one before stays, as NAME.vN.

    Raises:
        RepositoryError: there is no such model or version, other models need the public name as it is, or the
            repository cannot be written.
        VerificationError: an entry of the version is not what was certified.
    """
    return _move(name, repository, lambda history, public: (number, (*history, public)))


def rollback(name: str, repository: Path) -> Move:
    """Let the public name `name` stand for what it stood for before the last promotion that was not rolled back.

    Raises:
        RepositoryError: it stood for nothing else, or as `promote` does.
        VerificationError: an entry of that version is not what was certified.
    """

    def last(history: tuple[int, ...], public: int) -> tuple[int, tuple[int, ...]]:
        if not history:
            raise RepositoryError(
                f"{repository / name}: expected a version that the name stood for before {public}, found none; "
                f"choose one with voxtile-build promote {name} N"
            )
        return history[-1], history[:-1]

    return _move(name, repository, last)


Choice = Callable[[tuple[int, ...], int], tuple[int, tuple[int, ...]]]
"""(history, the version that the name stands for) -> the version that it will stand for, and the history then."""


def _move(name: str, repository: Path, choose: Choice) -> Move:
    read_config(repository / name)  # before the repository is made, which a wrong path would name
    with staging(repository) as staged:
        config, found = read_config(repository / name), versions_of(name, repository)
        public = found.get(version_of(config))
        if public is None or model_of(config, repository / name) != name:
            raise RepositoryError(
                f"{repository / name}: expected a public model of one network or of folds, found none; versions of "
                "sets, of cascades and of engines' entries do not exist"
            )
        number, history = choose(history_of(config), public.number)
        wanted = _found(name, number, found, repository)
        if number == public.number:
            return Move(number, number, public.card)
        _check_not_needed(name, repository)
        require_own([repository / name])
        require_certified(wanted, repository)
        write_copy(wanted.config, name, staged, history)
        publish(staged, repository, [name])
        bring_in_step(repository, [name])
    return Move(public.number, number, wanted.card)


def check_address(url: str) -> None:
    """Refuse an address that no server can have, before anything changes.

    Raises:
        RepositoryError: it is none.
    """
    try:
        connect(url, ConnectionConfig()).close()
    except InputError as error:
        raise RepositoryError(f"--url: {error}") from None


def load_at(url: str, name: str, repository: Path) -> tuple[str, ...]:
    """Let a Triton in the mode explicit load the versions of a model, and last its public name as it is now.

    Args:
        url: HOST:PORT of its gRPC service.
        name: the public name.
        repository: what it serves.

    Returns:
        The entries that it has loaded.

    Raises:
        RepositoryError: it does not answer, or does not load one; the repository stays as it is.
    """
    from tritonclient.utils import InferenceServerException

    kept = [one.entry for one in versions_of(name, repository).values() if one.entry != name]
    check_address(url)
    client = connect(url, ConnectionConfig())
    try:
        for entry in (*kept, name):
            client.load_model(entry, headers=control_headers(url, ConnectionConfig()), client_timeout=LOADING_S)
    except InferenceServerException as error:
        raise RepositoryError(
            f"{url}: the repository has changed, but the server does not load it "
            f"({error.message() or error.status()}); a server in the mode poll loads it by itself, and one in the "
            "mode none when it is started again"
        ) from None
    finally:
        client.close()
    return (*kept, name)


def _found(name: str, number: int, found: dict[int, Version], repository: Path) -> Version:
    if number not in found:
        raise RepositoryError(
            f"{repository / version_entry(name, number)}: expected version {number} of {name}, found the versions "
            f"{in_words(tuple(found))}"
        )
    return found[number]


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
    folds = fold_names(version.config)
    for engine, known in version.card.certificates.items():
        entries = [repository / entry_name(fold, engine) for fold in folds]
        if not known.accepted:
            raise _unsound(version, f"{engine} missed a limit of its certificate")
        for entry in entries:
            _check_files(version, entry)
        if not are_certified(entries, known.sha256):
            names = ", ".join(entry.name for entry in entries)
            raise _unsound(version, f"{names}: another certificate than the card names ({known.sha256[:12]}…)")
    if (mean := mean_entry(version.config)) is not None:
        _check_files(version, repository / mean)


def _check_files(version: Version, folder: Path) -> None:
    try:
        fault = next(read_entry(folder).file_faults(), None)
    except VerificationError as error:
        raise _unsound(version, str(error)) from None
    if fault:
        raise _unsound(version, fault)


def _unsound(version: Version, fault: str) -> VerificationError:
    return VerificationError(
        f"{version.name}: version {version.number} is not what was certified, and the public name stays: {fault}"
    )
