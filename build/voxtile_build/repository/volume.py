"""Writes the entries that segment whole scans on the server: NAME_scan, and NAME_scan_stream with progress.

They lie in a repository of their own, because a server without the backend `voxtile` would not start with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import PARAMETER, get_card
from voxtile_build.repository.config import PLACEHOLDER, read_config, write_config

BACKEND = "voxtile"
ENDINGS = ("_scan", "_scan_stream")
VERSION = "1"

QUEUE = 8
"""Scans that wait for an instance; a further one is refused at once."""


def volume_repository(repository: Path) -> Path:
    """Where the entries for the models of `repository` lie unless somebody says otherwise: beside it."""
    return repository.with_name(f"{repository.name}-volume")


def write_volume_entries(
    name: str, repository: Path, target: Path, *, count: int = 1, queue: int = QUEUE, max_ram_mib: float | None = None
) -> tuple[Path, ...]:
    """Write the entries that segment whole scans with the public model `name`; those of an earlier time are replaced.

    Args:
        name: the public name.
        repository: where the model is.
        target: the repository for the entries; made if there is none.
        count: scans that are segmented at once.
        queue: scans that wait; a further one is refused at once.
        max_ram_mib: the most memory that one scan may take on the server, in MiB; None for no limit.

    Returns:
        The folders of the entries.

    Raises:
        RepositoryError: there is no such model, or `target` is the model's own repository.
    """
    if target.resolve() == repository.resolve():
        raise RepositoryError(
            f"{target}: expected another folder than the models' own, where a server without the backend {BACKEND!r} "
            "would not start; leave --to out"
        )
    folders = []
    for ending in ENDINGS:
        folder = target / f"{name}{ending}"
        config = _config(name, ending, count, queue)
        networks = list(_networks(name, repository, folder))
        config.parameters["networks"].string_value = json.dumps(networks, sort_keys=True)
        if max_ram_mib is not None:
            config.parameters["max_ram_mib"].string_value = f"{max_ram_mib:g}"
        (folder / VERSION).mkdir(parents=True, exist_ok=True)
        (folder / VERSION / "README").write_text(PLACEHOLDER.replace("An ensemble", "This entry"), encoding="utf-8")
        write_config(config, folder)
        folders.append(folder)
    return tuple(folders)


def _networks(name: str, repository: Path, entry: Path) -> Iterator[dict[str, str | int]]:
    """What the backend must know of each network: of the model itself first, then of all that it needs."""
    waiting = [name]
    for wanted in waiting:
        folder = repository / wanted
        config = read_config(folder)
        versions = config.version_policy.specific.versions
        yield {
            "name": wanted,
            "card": config.parameters[PARAMETER].string_value,
            "version": str(max(versions, default=1)),
            "max_batch_size": max(config.max_batch_size, 1),
            "config": os.path.relpath(folder / "config.pbtxt", entry),
        }
        waiting += [needed for needed in _needed(get_card(config, folder)) if needed not in waiting]


def _needed(card: Card) -> tuple[str, ...]:
    """The public names of other models that a model's masks take."""
    parts = card.parts
    crop = (parts.crop.model,) if parts and parts.crop else ()
    stage = (card.previous_stage,) if card.previous_stage else ()
    return (*stage, *(part.model for part in parts.models), *crop) if parts else stage


def _config(name: str, ending: str, count: int, queue: int) -> pb.ModelConfig:
    # A batch of 1 lets Triton bound the queue; tensors have that axis.
    config = pb.ModelConfig(name=f"{name}{ending}", backend=BACKEND, max_batch_size=1)
    config.input.add(name="scan", data_type=pb.TYPE_UINT8, dims=[-1])
    if ending == "_scan_stream":
        config.output.add(name="progress", data_type=pb.TYPE_FP32, dims=[1])
        config.model_transaction_policy.decoupled = True
    config.output.add(name="report", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="mask", data_type=pb.TYPE_UINT8, dims=[-1])  # the last, see the backend
    config.dynamic_batching.default_queue_policy.max_queue_size = queue
    config.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    return config
