"""Keeps the entries that segment whole scans in step with the models: written, written again, or removed.

It looks only into the folder beside the repository; entries elsewhere are their owner's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CONFIG
from voxtile_build.repository.owner import BACKEND, require_own
from voxtile_build.repository.volume import (
    LIMIT,
    NETWORKS,
    VERSION,
    VolumeSettings,
    cannot_write,
    volume_names,
    volume_repository,
    write_volume_entries,
)


def bring_in_step(
    repository: Path, changed: Collection[str], name: str | None = None, wanted: bool | None = None
) -> tuple[Path, ...]:
    """Let the entries for whole scans fit the models of a repository.

    Entries that use a changed model are written again, to be run as they are now. Entries of models that are gone are
    removed.

    Args:
        repository: the model repository, after a change.
        changed: public names of the models that have changed.
        name: the public name that `wanted` speaks of.
        wanted: True to write entries where there are none, False to remove them, None to do neither.

    Returns:
        The folders of the entries of `name`.

    Raises:
        RepositoryError: an entry cannot be written or removed.
    """
    target = volume_repository(repository)
    written: dict[str, tuple[Path, ...]] = {}
    found = {one.name: one for one in _found(repository, target)}
    if name is not None and wanted and name not in found:
        found[name] = _Found(name, (name,), VolumeSettings())
    for one in found.values():
        refused = wanted is False and one.name == name
        if refused or not (repository / one.name / CONFIG).is_file():
            remove_volume_entries(one.name, target)
        elif set(changed) & {one.name, *one.networks}:
            written[one.name] = write_volume_entries(one.name, repository, target, one.settings)
    return written.get(name or "", ())


def check_in_step(repository: Path, changed: Collection[str]) -> None:
    """Raise RepositoryError where entries that use a model of the names `changed` could not be written again."""
    for one in _found(repository, volume_repository(repository)):
        if set(changed) & {one.name, *one.networks}:
            check_target(one.name, repository)


def check_target(name: str, repository: Path) -> None:
    """Raise RepositoryError where entries for whole scans of `name` could not be written: before hours of building."""
    target = volume_repository(repository)
    if target.exists() and not target.is_dir():
        raise RepositoryError(
            f"{target}: expected a folder for the entries for whole scans, found a file; move it away"
        )
    folders = [target, *(target / entry / part for entry in volume_names(name) for part in ("", VERSION))]
    refused = next((one for one in folders if one.is_dir() and not os.access(one, os.W_OK)), None)
    if refused is not None:
        raise RepositoryError(
            f"{refused}: the entries for whole scans cannot be written there; make it yours to write to"
        )
    require_own([target / entry for entry in volume_names(name)])


def check_no_volume(name: str, repository: Path) -> None:
    """Raise RepositoryError where an entry for whole scans of another model has a public name."""
    if _is_ours(volume_repository(repository) / name):
        raise RepositoryError(
            f"{volume_repository(repository) / name}: an entry for whole scans of another model has the name {name!r}; "
            "choose another name"
        )


def remove_volume_entries(name: str, target: Path) -> tuple[Path, ...]:
    """Remove the entries that segment whole scans with the public model `name`.

    Args:
        name: the public name; the model may be gone.
        target: the repository of the entries.

    Returns:
        The folders that were removed.

    Raises:
        RepositoryError: there are none, or one cannot be removed.
    """
    folders = tuple(target / entry for entry in volume_names(name) if _is_ours(target / entry))
    if not folders:
        raise RepositoryError(f"{target}: expected an entry for whole scans of {name!r}, found none")
    try:
        for folder in folders:
            (folder / CONFIG).unlink()  # first: what is left of a folder is then no entry of ours
            shutil.rmtree(folder)
    except OSError as error:
        raise cannot_write(target, error) from error
    return folders


@dataclass(frozen=True)
class _Found:
    """The entries of one model: its public name, the networks that they send tiles to, and how they are run."""

    name: str
    networks: tuple[str, ...]
    settings: VolumeSettings


def _found(repository: Path, target: Path) -> Iterator[_Found]:
    """The entries in `target` for the models of a repository, and for models that are gone from it.

    Where repository and entries were copied or renamed together, the entries lead to another place than the repository,
    and are for its models all the same: they are served with it.
    """
    for folder in sorted(target.glob("*")):
        with contextlib.suppress(RepositoryError, LookupError, TypeError, ValueError):  # nothing that we have written
            config = read_config(folder)
            networks = json.loads(config.parameters[NETWORKS].string_value)
            place = Path(folder, networks[0]["config"]).resolve()
            name = str(networks[0]["name"])
            copied = (repository / name / CONFIG).is_file()
            here = copied or place.parent.parent == repository.resolve()
            of_it = place.parent.name == networks[0].get("entry", name) and folder.name in volume_names(name)
            if here and of_it and config.backend == BACKEND:
                yield _Found(name, tuple(one["name"] for one in networks), _settings(config))


def _is_ours(folder: Path) -> bool:
    with contextlib.suppress(RepositoryError):
        return bool(read_config(folder).backend == BACKEND)
    return False


def _settings(config: pb.ModelConfig) -> VolumeSettings:
    limit = config.parameters[LIMIT].string_value if LIMIT in config.parameters else None
    queue = config.dynamic_batching.default_queue_policy.max_queue_size
    return VolumeSettings(config.instance_group[0].count, queue, float(limit) if limit else None)
