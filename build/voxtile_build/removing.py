"""Removes a version of a model from a repository, with its engines and certificates. The one that is public stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.asked import require_model
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CONFIG, fold_names, version_entry
from voxtile_build.repository.names import inner_names
from voxtile_build.repository.owner import require_own
from voxtile_build.repository.past import past_of
from voxtile_build.repository.publishing import publish, staging
from voxtile_build.repository.versions import find_version, public_version, versions_of, write_copy
from voxtile_build.repository.volumes_in_step import bring_in_step


def remove(name: str, number: int, repository: Path) -> tuple[str, ...]:
    """Remove the version `number` of a model: all of its entries go, or none.

    The public name forgets that it stood for it, and remembers its number, which no other version gets.

    Args:
        name: the public name.
        number: the version.
        repository: the model repository.

    Returns:
        The entries that were removed.

    Raises:
        RepositoryError: there is no such model or version, the public name stands for it or is damaged, another
            model sends tiles to its entries, or the repository cannot be written.
    """
    require_model(name, repository)  # before the repository is made, which a wrong path would name
    with staging(repository) as staged:
        found = versions_of(name, repository)
        wanted, public = find_version(name, number, found, repository), public_version(name, repository)
        if public is None:
            raise RepositoryError(
                f"{repository / name}: expected a public name to keep, found that its entry is gone or damaged; give "
                f"it to a version first: voxtile-build promote {name} N"
            )
        if number == public:
            raise RepositoryError(
                f"{repository / name}: expected a version that the name does not stand for, found that {name} is "
                f"version {number}; let it stand for another one first: voxtile-build promote {name} N"
            )
        names = (version_entry(name, number), *inner_names(wanted.base, fold_names(wanted.config)))
        gone = tuple(one for one in names if os.path.lexists(repository / one))
        _check_not_used(gone, repository)
        config = read_config(repository / name)
        require_own([repository / one for one in (name, *gone)])
        write_copy(config, name, staged, past_of(config).without(number, public))
        publish(staged, repository, [name], gone)
        bring_in_step(repository, [])
    return gone


def _check_not_used(gone: Collection[str], repository: Path) -> None:
    """Refuse where an entry that stays sends tiles to one that goes, as one that was written by hand may."""
    for file in sorted(repository.glob(f"*/{CONFIG}")):
        if file.parent.name not in gone and (used := _steps(file.parent) & set(gone)):
            raise RepositoryError(
                f"{file}: expected no use of the version, found that {file.parent.name} sends tiles to "
                f"{', '.join(sorted(used))}; remove that entry first"
            )


def _steps(folder: Path) -> set[str]:
    with contextlib.suppress(RepositoryError):
        return {step.model_name for step in read_config(folder).ensemble_scheduling.step}
    return set()
