"""Chooses the engine that a public name stands for, among those that are built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import get_card, set_card
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.digests import are_certified, certificate_digests
from voxtile_build.repository.entries import entry_name, fold_names
from voxtile_build.repository.facts import tile_seconds
from voxtile_build.repository.model_set import set_names
from voxtile_build.repository.publishing import staging
from voxtile_build.repository.versions import same_build
from voxtile_build.repository.volumes_in_step import bring_in_step

FASTEST = "fastest"
"""In place of an engine's name: the one that took least for a tile when it was built."""


def fastest_engine(name: str, repository: Path) -> str:
    """The engine of the public entry `name` that took least for a tile where it was built.

    All folds are taken together, and all models of a set.

    Engines that were measured on another kind of device than they are served on do not count.

    Raises:
        RepositoryError: the entry does not exist, or no engine was measured.
    """
    config = read_config(repository / name)
    card = get_card(config, repository / name)
    configs = [read_config(repository / one) for one in set_names(config)] or [config]
    folds = [fold for one in configs for fold in fold_names(one)]
    seconds = {
        engine: sum(tile_seconds(repository / entry_name(fold, engine)) for fold in folds)
        for engine, certificate in card.certificates.items()
        if certificate.device == certificate.serves_on
    }
    if not seconds:
        raise RepositoryError(
            f"{repository / name}: expected an engine that was measured where it is served, found none among "
            f"{', '.join(card.certificates)}; name the engine"
        )
    return min(seconds, key=lambda engine: seconds[engine])


def set_default_engine(name: str, engine: str, repository: Path) -> Card:
    """Let the public entry `name` stand for another of its engines; returns the new card.

    One entry changes in one step. Of a set, all models change one after the other, and the set's own card last. Where
    the public name stands for one of several versions, the version's own entry changes first.

    Raises:
        RepositoryError: the entry or the engine does not exist, or the engine's certificate is not the one that the
            card was made with.
    """
    read_config(repository / name)  # before the repository is made, which a wrong path would name
    with staging(repository):
        models = set_names(read_config(repository / name))
        changes = [
            _changed(one, engine, repository) for one in (*models, name)
        ]  # all are checked before one is written
        for one, card in zip((*models, name), changes, strict=True):
            for twin in reversed(same_build(one, repository)):
                own = read_config(repository / twin)
                set_card(own, card)
                write_config(own, repository / twin)
        bring_in_step(repository, (*models, name))
    return changes[-1]


def _changed(name: str, engine: str, repository: Path) -> Card:
    folder = repository / name
    config = read_config(folder)
    card = get_card(config, folder)
    if engine not in card.certificates:
        known = ", ".join(card.certificates)
        raise RepositoryError(f"{folder}: expected one of its engines {known}, found {engine!r}")
    if not set_names(config):
        entries = [repository / entry_name(fold, engine) for fold in fold_names(config)]
        _check_certificates(entries, card.certificates[engine].sha256)
    return card.model_copy(update={"engine": engine})


def _check_certificates(entries: Sequence[Path], expected: str) -> None:
    if are_certified(entries, expected):
        return
    found = ", ".join(f"{digest[:12]}…" for digests in certificate_digests(entries) for digest in digests) or "none"
    raise RepositoryError(
        f"{', '.join(map(str, entries))}: expected the certificate {expected[:12]}… that the card was made with, "
        f"found {found}; build the model again"
    )
