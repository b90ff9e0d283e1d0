"""A MONAI bundle as a model to build: its metadata, inference configuration and weights become a spec.

Nothing of the bundle is run: `config` says what is read of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile.transforms.base import Transform
from voxtile.transforms.preprocessing import Spacing
from voxtile_build.errors import SourceError
from voxtile_build.importers import network
from voxtile_build.importers.bundle.config import Config, read_config
from voxtile_build.importers.bundle.inferer import inferer_of
from voxtile_build.importers.bundle.metadata import Channels, channels_of
from voxtile_build.importers.bundle.network import check_evaluator, network_of
from voxtile_build.importers.bundle.overrides import with_values
from voxtile_build.importers.bundle.postprocessing import Finish, finish_of
from voxtile_build.importers.bundle.preprocessing import steps_for
from voxtile_build.importers.bundle.refusals import Refusals
from voxtile_build.importers.bundle.steps import steps_of
from voxtile_build.importers.settings import check_settings
from voxtile_build.repository.folds import Model
from voxtile_build.spec.spec import Spec, parse_spec

IMAGE = "image"
"""The key under which MONAI's evaluator takes the network's input."""
OUTPUT = {"output": ("region_order",)}
"""What may be given of [output]: the order of regions, which a bundle may leave open."""


def model_of(folder: Path, name: str, settings: Mapping[str, Any] | None = None, values: Sequence[str] = ()) -> Model:
    """The model in a bundle, ready to be built. Arguments and errors are those of `spec_of`."""
    return network.model_of(spec_of(folder, name, settings, values))


def spec_of(folder: Path, name: str, settings: Mapping[str, Any] | None = None, values: Sequence[str] = ()) -> Spec:
    """The spec that describes a bundle.

    Args:
        folder: the bundle.
        name: the public name.
        settings: the tables [serving], [precision] and [acceptance] of a spec, and `region_order` of [output].
        values: texts KEY=VALUE that stand in place of values of the inference configuration.

    Raises:
        BuildError: parts of the bundle cannot be translated, or are missing; names all of them.
    """
    check_settings(settings or {}, OUTPUT)
    if not (folder / "configs").is_dir():
        found = "a file; if it is a zip, unpack it and give the folder" if folder.is_file() else "none"
        raise SourceError(f"{folder}: expected a MONAI bundle, a folder with configs/ and models/, found {found}")
    metadata = read_config(folder, "metadata")
    config = with_values(read_config(folder, "inference"), values)
    fields, where = _fields(folder, metadata, config), config.where
    fields |= {
        "name": name,
        "title": str(metadata.get("task") or metadata.get("name") or ""),
        **(settings or {}),
        "output": {**fields["output"], **(settings or {}).get("output", {})},
        "remarks": [*fields["remarks"], *(f"given by --set: {text}" for text in values)],
    }
    return parse_spec(fields, where, folder.resolve())


def _fields(folder: Path, metadata: Config, config: Config) -> dict[str, Any]:
    """The tables of the spec that the bundle decides.

    Raises:
        BuildError: every reason for which it cannot be translated.
    """
    refusals = Refusals(config.where)
    fields: dict[str, Any] = {"remarks": []}
    channels = labels = Channels((), (), None)
    chain: tuple[Transform, ...] = ()
    finish = Finish()
    with refusals.collect():
        channels = channels_of(metadata, "inputs", IMAGE, "channel")
    with refusals.collect():
        labels = channels_of(metadata, "outputs", "pred", "label")
    with refusals.collect():
        check_evaluator(config)
    with refusals.collect():
        steps = steps_of(config, "preprocessing", refusals)
        chain = steps_for(steps, len(channels.names), IMAGE, config.where, refusals)
    with refusals.collect():
        made, notes = inferer_of(config, chain, channels.size)
        fields |= {"inferer": made}
        fields["remarks"] += notes
    with refusals.collect():
        finish = finish_of(steps_of(config, "postprocessing", refusals), len(labels.names), config.where, refusals)
    with refusals.collect():
        made, notes = network_of(config, folder, _about(metadata, folder))
        fields |= made
        fields["remarks"] += notes
    refusals.raise_all()
    fields["remarks"] += [*channels.notes, *labels.notes, *finish.notes]
    return fields | {
        "input": {"channels": list(channels.names)},
        "output": finish.output(labels.names),
        "preprocessing": _tables(chain),
        "postprocessing": _tables(finish.without_idle(any(isinstance(step, Spacing) for step in chain))),
    }


def _tables(steps: Sequence[Transform]) -> list[dict[str, Any]] | None:
    """Steps as tables of a spec; None for none, which is no chain."""
    return [step.model_dump(exclude_none=True) for step in steps] or None


def _about(metadata: Config, folder: Path) -> dict[str, str]:
    """Where the weights come from, and the terms of their use."""
    return {
        "source": f"MONAI bundle {metadata.get('name') or folder.name} {metadata.get('version') or ''}".strip(),
        "licence": str(metadata.get("license") or metadata.get("copyright") or ""),
    }
