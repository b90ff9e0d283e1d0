"""Writes the entries that segment whole scans on the server: NAME_scan, and NAME_scan_stream with progress.

They lie in a repository of their own, because a server without the backend `voxtile` would not start with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import PARAMETER, get_card
from voxtile_build.repository.config import PLACEHOLDER, read_config, write_config
from voxtile_build.repository.entries import CONFIG, version_of
from voxtile_build.repository.owner import BACKEND, require_own
from voxtile_build.repository.versions import own_entry

ENDINGS = ("_scan", "_scan_stream")
VERSION = "1"
NETWORKS, LIMIT = "networks", "max_ram_mib"
"""Parameters of config.pbtxt that the backend reads."""

QUEUE = 8
"""Scans that wait for an instance; a further one is refused at once."""


def volume_repository(repository: Path) -> Path:
    """Where the entries for the models of `repository` lie unless somebody says otherwise: beside it."""
    return repository.with_name(f"{repository.name}-volume")


@dataclass(frozen=True)
class VolumeSettings:
    """How the server runs the entries of one model.

    Attributes:
        count: scans that are segmented at once.
        queue: scans that wait; a further one is refused at once.
        max_ram_mib: the most memory that one scan may take on the server, in MiB; None for no limit.
    """

    count: int = 1
    queue: int = QUEUE
    max_ram_mib: float | None = None


def write_volume_entries(
    name: str, repository: Path, target: Path, settings: VolumeSettings = VolumeSettings()
) -> tuple[Path, ...]:
    """Write the entries that segment whole scans with the public model `name`; those of an earlier time are replaced.

    Args:
        name: the public name.
        repository: where the model is.
        target: the repository for the entries; made if there is none.
        settings: how the server runs them.

    Returns:
        The folders of the entries.

    Raises:
        RepositoryError: there is no such model, another one has the name of an entry, here or in `target`, `target` is
            the model's own repository, or it cannot be written.
    """
    if target.resolve() == repository.resolve():
        raise RepositoryError(
            f"{target}: expected another folder than the models' own, where a server without the backend {BACKEND!r} "
            "would not start; leave --to out"
        )
    folders = [target / entry for entry in volume_names(name)]
    configs = [_config(name, folder, repository, settings) for folder in folders]
    require_own(folders)
    _write(configs, folders, target)
    # A name that moves just now is followed: whoever moves it may have written the entries before these here.
    while (now := [_config(name, folder, repository, settings) for folder in folders]) != configs:
        configs = now
        _write(configs, folders, target)
    return tuple(folders)


def _write(configs: Sequence[pb.ModelConfig], folders: Sequence[Path], target: Path) -> None:
    try:
        for folder, config in zip(folders, configs, strict=True):
            (folder / VERSION).mkdir(parents=True, exist_ok=True)
            (folder / VERSION / "README").write_text(PLACEHOLDER.replace("An ensemble", "This entry"), encoding="utf-8")
            write_config(config, folder)
    except OSError as error:
        raise cannot_write(target, error) from error


def cannot_write(target: Path, error: OSError) -> RepositoryError:
    """The error of a repository of scan entries that cannot be changed."""
    return RepositoryError(
        f"{error.filename or target}: the entries for whole scans cannot be written: {error.strerror or error}; "
        f"make {target} a folder that you may write to"
    )


def volume_names(name: str) -> tuple[str, ...]:
    """The entries that segment whole scans with a public model."""
    return tuple(f"{name}{ending}" for ending in ENDINGS)


def check_no_model(name: str, repository: Path) -> None:
    """Raise RepositoryError where a model has the name of an entry for whole scans of the public model `name`."""
    for entry in volume_names(name):
        if (repository / entry).exists():
            raise RepositoryError(
                f"{repository / entry}: a model has the name that the entry for whole scans of {name!r} would have; "
                "publish one of the two under another name"
            )


def _networks(name: str, repository: Path, entry: Path) -> Iterator[dict[str, str | int]]:
    """What the backend must know of each network: of the model itself first, then of all that it needs."""
    waiting = [name]
    for wanted in waiting:
        folder = repository / wanted
        config = read_config(folder)
        entry_asked = own_entry(wanted, repository)
        instances = _instances(config, repository)
        yield {
            "name": wanted,
            "card": config.parameters[PARAMETER].string_value,
            "version": str(version_of(config)),
            "max_batch_size": max(config.max_batch_size, 1),
            "config": os.path.relpath(repository / entry_asked / CONFIG, entry.resolve()),
            # The public name may move while a scan is on its way, a version's own entry does not.
            **({"entry": entry_asked} if entry_asked != wanted else {}),
            # With one that is computed and one that waits, an engine never idles.
            **({"at_once": 2 * instances} if instances else {}),
        }
        waiting += [needed for needed in _needed(get_card(config, folder)) if needed not in waiting]


def _instances(config: pb.ModelConfig, repository: Path) -> int | None:
    """The instances of the engine behind a public config, of the most where there are several; None if unknown."""
    steps = [read_config(repository / step.model_name) for step in config.ensemble_scheduling.step]
    groups = [group for step in steps for group in step.instance_group]
    if any(group.kind != pb.ModelInstanceGroup.KIND_CPU and not group.gpus for group in groups):
        return None  # as many as there are GPUs, which only the server knows
    return max((group.count * max(len(group.gpus), 1) for group in groups), default=None)


def _needed(card: Card) -> tuple[str, ...]:
    """The public names of other models that a model's masks take."""
    parts = card.parts
    crop = (parts.crop.model,) if parts and parts.crop else ()
    stage = (card.previous_stage,) if card.previous_stage else ()
    return (*stage, *(part.model for part in parts.models), *crop) if parts else stage


def _config(name: str, folder: Path, repository: Path, settings: VolumeSettings) -> pb.ModelConfig:
    # A batch of 1 lets Triton bound the queue; tensors have that axis.
    config = pb.ModelConfig(name=folder.name, backend=BACKEND, max_batch_size=1)
    streams = folder.name == volume_names(name)[1]
    config.input.add(name="scan", data_type=pb.TYPE_UINT8, dims=[-1], optional=streams)
    if streams:
        config.input.add(name="scan_base64", data_type=pb.TYPE_STRING, dims=[1], optional=True)
        config.output.add(name="progress", data_type=pb.TYPE_FP32, dims=[1])
        config.output.add(name="mask_base64", data_type=pb.TYPE_STRING, dims=[1])
        config.model_transaction_policy.decoupled = True
    config.output.add(name="report", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="mask", data_type=pb.TYPE_UINT8, dims=[-1])  # the last, see the backend
    config.dynamic_batching.default_queue_policy.max_queue_size = settings.queue
    config.instance_group.add(count=settings.count, kind=pb.ModelInstanceGroup.KIND_CPU)
    check_no_model(name, repository)
    config.parameters[NETWORKS].string_value = json.dumps(list(_networks(name, repository, folder)), sort_keys=True)
    if settings.max_ram_mib is not None:
        config.parameters[LIMIT].string_value = f"{settings.max_ram_mib:g}"
    return config
