"""Finds the entry that somebody means by NAME or NAME@VERSION, and says what there is where it is not there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from voxtile.errors import InputError
from voxtile.triton.versions import MARK, split_version
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CONFIG
from voxtile_build.repository.versions import find_version, model_of, versions_of


def asked_entry(asked: str, repository: Path) -> str:
    """The entry that carries the card of NAME, or of the version that NAME@VERSION asks for.

    Raises:
        RepositoryError: there is no such model or version, or what stands behind the @ is none.
    """
    try:
        name, version = split_version(asked)
    except InputError as error:
        raise RepositoryError(str(error)) from None
    if not version:
        return name
    require_model(name, repository)
    return find_version(name, int(version), versions_of(name, repository), repository).entry


def require_model(name: str, repository: Path) -> None:
    """Refuse a public name that a repository does not have; nothing is written.

    Raises:
        RepositoryError: it has none of that name; it says which it has.
    """
    if MARK in name:
        raise RepositoryError(
            f"{name}: expected a model's name, found a version behind it; give the number as a word of its own, as in "
            "promote brain 2"
        )
    if not (repository / name / CONFIG).exists() and not versions_of(name, repository):
        raise RepositoryError(
            f"{repository / name}: expected a model of the repository, found none of that name; it has: "
            f"{', '.join(_public_names(repository)) or 'no model'}"
        )


def _public_names(repository: Path) -> tuple[str, ...]:
    found = set[str]()
    for file in repository.glob(f"*/{CONFIG}"):
        with contextlib.suppress(RepositoryError):
            config = read_config(file.parent)
            get_card(config, file.parent)
            found.add(model_of(config, file.parent))
    return tuple(sorted(found))
