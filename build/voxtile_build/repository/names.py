"""Checks names in a model repository: no public name looks like an inner entry, and no entry belongs to two models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxtile_build.errors import RepositoryError, SpecError
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CONFIG, entry_name, fold_names, mean_name
from voxtile_build.repository.folds import Model
from voxtile_build.repository.model_set import set_names
from voxtile_build.repository.owner import require_own
from voxtile_build.repository.versions import model_of
from voxtile_build.spec.engines import ENGINE_NAMES
from voxtile_build.spec.name import checked_name


def check_names(models: Sequence[Model], repository: Path, sets: Sequence[str] = ()) -> None:
    """Refuse names that would collide.

    Args:
        models: those of one build; they replace the models of the same public names in `repository`.
        repository: the model repository.
        sets: public names of sets of the same build.

    Raises:
        SpecError: a public name looks like that of an inner entry, or an entry of this name belongs to another model.
        RepositoryError: what lies under a name that would be replaced or removed was not built here.
    """
    taken = dict(_taken(repository, {*(model.spec.name for model in models), *sets}))
    new = [(model.spec.name, [fold.name for fold in model.folds]) for model in models]
    for name, folds in (*new, *((one, [one]) for one in sets)):
        try:
            checked_name(name)
        except ValueError as error:
            raise SpecError(f"{name}: name: {error}") from None
        for entry in (name, *inner_names(name, folds)):
            if entry in taken:
                raise SpecError(
                    f"{name}: name: expected names that no other model has, but {entry!r} belongs to {taken[entry]!r}; "
                    "choose another name, or remove that model's entries first"
                )
            taken[entry] = name
        require_own([repository / entry for entry in (name, *inner_names(name, folds))])
        require_own([repository / entry for entry in replaced_entries(name, repository)])


def inner_names(name: str, folds: Sequence[str]) -> tuple[str, ...]:
    """Every entry that may stand behind a public name, whatever engines are built."""
    names = sorted({name, *folds})
    return (*(entry_name(fold, engine) for fold in names for engine in ENGINE_NAMES), mean_name(name))


def entries_of(name: str, repository: Path) -> tuple[str, ...]:
    """Every entry that may stand behind a public name in the repository as it is, with the averaging one."""
    folds: tuple[str, ...] = ()
    with contextlib.suppress(
        RepositoryError
    ):  # the entry does not exist yet, or cannot be read: then only its own name is known
        folds = fold_names(read_config(repository / name))
    return inner_names(name, folds)


def replaced_entries(name: str, repository: Path) -> tuple[str, ...]:
    """Every entry that goes when another model or set is published under a name: of a set also its models'."""
    models: tuple[str, ...] = ()
    with contextlib.suppress(RepositoryError):
        models = set_names(read_config(repository / name))
    of_models = (entry for model in models for entry in (model, *entries_of(model, repository)))
    return (*entries_of(name, repository), *of_models)


def _taken(repository: Path, without: set[str]) -> Iterator[tuple[str, str]]:
    """Names of entries, each with the public model that it belongs to; the models `without` are left out."""
    for config in sorted(repository.glob(f"*/{CONFIG}")):
        name = config.parent.name
        with contextlib.suppress(RepositoryError):  # an entry that cannot be read belongs to no model
            found = read_config(config.parent)
            if "card" not in found.parameters:
                continue
            owner = model_of(found, config.parent)
            if owner not in without:
                yield from ((entry, owner) for entry in (name, *entries_of(name, repository)))
