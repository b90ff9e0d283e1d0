"""A MONAI bundle as a model to build: its metadata, inference configuration and weights become a spec.

Nothing of the bundle is run: `config` says what is read of its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.errors import NetworkError, SourceError
from voxtile_build.importers import network
from voxtile_build.importers.bundle.config import Config, read_config
from voxtile_build.importers.bundle.inference import output_of, tiling_of
from voxtile_build.importers.bundle.preprocessing import input_of
from voxtile_build.importers.bundle.steps import SPECIAL, steps_of
from voxtile_build.importers.bundle.targets import NETWORKS, TARGET, monai_name
from voxtile_build.importers.bundle.weights import network_part, weights_of
from voxtile_build.importers.settings import check_settings
from voxtile_build.networks import find_network
from voxtile_build.networks.weights import sha256_of_file
from voxtile_build.repository.folds import Model
from voxtile_build.spec.spec import Spec, parse_spec

ENGINES, EVALUATOR = "monai.engines", "SupervisedEvaluator"
RUN = {
    ("evaluator", "inferer"): "inferer",
    ("evaluator", "postprocessing"): "postprocessing",
    ("evaluator", "val_data_loader", "dataset", "transform"): "preprocessing",
}
"""What a bundle's evaluator runs, and under which id it is read."""
OWN_CODE = ("prepare_batch", "iteration_update")
"""Arguments of the evaluator that put code in the place of MONAI's."""
OUTPUT = {"output": ("region_order",)}
"""What may be given of [output]: the order of regions, which a bundle may leave open."""
SHOWN = 200
"""Letters of a part that an error shows."""
MOST_CHANNELS = 65_536
"""Channels or labels at most: as many as a mask can tell apart."""

GONE = {"SwinUNETR": ("img_size",)}
"""Arguments that MONAI ignored and later removed; older bundles still have them."""


def model_of(folder: Path, name: str, settings: Mapping[str, Any] | None = None) -> Model:
    """The model in a bundle, ready to be built. Arguments and errors are those of `spec_of`."""
    return network.model_of(spec_of(folder, name, settings))


def spec_of(folder: Path, name: str, settings: Mapping[str, Any] | None = None) -> Spec:
    """The spec that describes a bundle.

    Args:
        folder: the bundle.
        name: the public name.
        settings: the tables [serving], [precision] and [acceptance] of a spec, and `region_order` of [output].

    Raises:
        SourceError: a part of the bundle cannot be translated, or is missing.
        NetworkError: the network is not known.
        SpecError: the parts do not make a valid spec.
    """
    check_settings(settings or {}, OUTPUT)
    if not (folder / "configs").is_dir():
        raise SourceError(f"{folder}: expected a MONAI bundle, a folder with configs/ and models/, found none")
    metadata, config = read_config(folder, "metadata"), read_config(folder, "inference")
    image, prediction = _one_format(metadata, "inputs", "image"), _one_format(metadata, "outputs", "pred")
    channels = _names(metadata, image, "inputs::image", "channel")
    labels = _names(metadata, prediction, "outputs::pred", "label")
    given = input_of(steps_of(config, "preprocessing"), len(channels), "image", config.where)
    output = output_of(steps_of(config, "postprocessing"), labels, resampled="spacing" in given)
    part = _network_part(config)
    network = _network(config, part)
    _check_evaluator(config, part)
    weights = weights_of(config, folder, part)
    fields = {
        "name": name,
        "title": str(metadata.get("task") or metadata.get("name") or ""),
        "network": network,
        "weights": {
            "file": str(weights.resolve()),
            "sha256": sha256_of_file(weights),
            "source": f"MONAI bundle {metadata.get('name') or folder.name} {metadata.get('version') or ''}".strip(),
            "licence": str(metadata.get("license") or metadata.get("copyright") or ""),
        },
        "input": {"channels": channels, **given},
        "tiling": tiling_of(config),
        **(settings or {}),
        "output": {**output, **(settings or {}).get("output", {})},
    }
    return parse_spec(fields, str(folder), folder.resolve())


def _network_part(config: Config) -> Mapping[str, Any]:
    part = config.raw("network_def")
    if not isinstance(part, Mapping) or TARGET not in part:
        raise SourceError(f"{config.where}: network_def: expected a network with {TARGET}, found {part!r}")
    return part


def _check_evaluator(config: Config, network: Mapping[str, Any]) -> None:
    """Refuse a bundle that runs other parts than those that are read here."""
    evaluator = config.raw("evaluator")
    given = evaluator if isinstance(evaluator, Mapping) else {}
    if given:
        _check_engine(config, given)
    for key, value in (("network", config.raw("network")), ("evaluator::network", given.get("network"))):
        if value is not None and network_part(config, value, key) is not network:
            raise _other_part(config, key, "network_def", value)
    for path, read in RUN.items():
        part = _part_at(config, path)
        if part is not None and part is not config.raw(read):
            raise _other_part(config, "::".join(path), read, part)


def _check_engine(config: Config, evaluator: Mapping[str, Any]) -> None:
    name = monai_name(evaluator, ENGINES, f"{config.where}: evaluator")
    own = [key for key in OWN_CODE if evaluator.get(key) is not None]
    if name != EVALUATOR or own:
        raise SourceError(
            f"{config.where}: evaluator: expected {EVALUATOR} with MONAI's own steps, found {', '.join([name, *own])}, "
            "which has no counterpart"
        )


def _part_at(config: Config, path: Sequence[str]) -> Any:
    """What lies at the end of a path of keys and references; None where it ends before."""
    part: Any = config.content
    for key in path:
        if not isinstance(part, Mapping):
            return None
        part = config.followed(part.get(key), "::".join(path))
    return part


def _other_part(config: Config, where: str, read: str, found: Any) -> SourceError:
    shown = json.dumps(found, default=str)
    return SourceError(
        f"{config.where}: {where}: expected '@{read}', found {shown[:SHOWN]}{'…' if len(shown) > SHOWN else ''}; only "
        f"{read} is read, and the bundle runs another part: let both be the same in a copy of the bundle"
    )


def _network(config: Config, part: Mapping[str, Any]) -> dict[str, Any]:
    """[network] of `network_def`; all of its arguments must be plain values."""
    name = monai_name(part, NETWORKS, f"{config.where}: network_def")
    try:
        find_network(name)
    except NetworkError as error:
        raise NetworkError(f"{config.where}: network_def: {error}") from None
    args = {
        key: config.plain(value, f"network_def::{key}")
        for key, value in part.items()
        if not SPECIAL.fullmatch(key) and key not in GONE.get(name, ())
    }
    return {"name": name, "args": args}


def _one_format(metadata: Config, side: str, name: str) -> Mapping[str, Any]:
    """What network_data_format says of the image, which is the input, or of the prediction, which is the output."""
    formats = metadata.get(f"network_data_format::{side}")
    if not isinstance(formats, Mapping) or list(formats) != [name]:
        found = list(formats) if isinstance(formats, Mapping) else formats
        raise SourceError(f"{metadata.where}: network_data_format::{side}: expected {name!r} alone, found {found!r}")
    described = formats[name]
    if not isinstance(described, Mapping):
        raise SourceError(
            f"{metadata.where}: network_data_format::{side}::{name}: expected keys and values, found {described!r}"
        )
    return described


def _names(metadata: Config, described: Mapping[str, Any], where: str, what: str) -> list[str]:
    """Names of channels in order, from channel_def (index -> name); numbers where it is missing.

    Raises:
        SourceError: channel_def does not fit num_channels.
    """
    count, names = described.get("num_channels"), described.get("channel_def") or {}
    if not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
        raise SourceError(
            f"{metadata.where}: network_data_format::{where}::num_channels: expected a number from 1 to "
            f"{MOST_CHANNELS}, found {count!r}"
        )
    if not isinstance(names, Mapping) or (names and sorted(map(str, names)) != sorted(map(str, range(count)))):
        raise SourceError(
            f"{metadata.where}: network_data_format::{where}::channel_def: expected one name for each of "
            f"{count} channels, 0 … {count - 1}, found {json.dumps(names, default=str)}"
        )
    ordered = {int(index): str(name) for index, name in names.items()}
    return [ordered.get(index, f"{what} {index}") for index in range(count)]
