"""A MONAI bundle as a model to build: its metadata, inference configuration and weights become a spec.

Nothing of the bundle is run: `config` says what is read of its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtile_build.errors import NetworkError, SourceError
from voxtile_build.importers import network
from voxtile_build.importers.bundle.config import Config, read_config, target_of
from voxtile_build.importers.bundle.inference import decision_of, tiling_of
from voxtile_build.importers.bundle.preprocessing import input_of
from voxtile_build.importers.bundle.steps import steps_of
from voxtile_build.importers.settings import check_settings
from voxtile_build.networks import find_network
from voxtile_build.networks.weights import sha256_of_file
from voxtile_build.repository.folds import Model
from voxtile_build.spec.spec import Spec, parse_spec

WEIGHTS = ("models/model.safetensors", "models/model.pt")
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
        settings: the tables [serving], [precision] and [acceptance] of a spec.

    Raises:
        SourceError: a part of the bundle cannot be translated, or is missing.
        NetworkError: the network is not known.
        SpecError: the parts do not make a valid spec.
    """
    check_settings(settings or {})
    if not (folder / "configs").is_dir():
        raise SourceError(f"{folder}: expected a MONAI bundle, a folder with configs/ and models/, found none")
    metadata, config = read_config(folder, "metadata"), read_config(folder, "inference")
    image, prediction = _one_format(metadata, "inputs", "image"), _one_format(metadata, "outputs", "pred")
    channels = _names(metadata, image, "inputs::image", "channel")
    labels = _names(metadata, prediction, "outputs::pred", "label")
    given = input_of(steps_of(config, "preprocessing"), len(channels), ("image",))
    decision = decision_of(steps_of(config, "postprocessing"), resampled="spacing" in given)
    weights = _weights(folder)
    fields = {
        "name": name,
        "title": str(metadata.get("task") or metadata.get("name") or ""),
        "network": _network(config),
        "weights": {
            "file": str(weights.resolve()),
            "sha256": sha256_of_file(weights),
            "source": f"MONAI bundle {metadata.get('name') or folder.name} {metadata.get('version') or ''}".strip(),
            "licence": str(metadata.get("license") or metadata.get("copyright") or ""),
        },
        "input": {"channels": channels, **given},
        "output": {"labels": labels, **decision},
        "tiling": tiling_of(config),
        **(settings or {}),
    }
    return parse_spec(fields, str(folder), folder.resolve())


def _network(config: Config) -> dict[str, Any]:
    """[network] of `network_def`; all of its arguments must be plain values."""
    part = config.raw("network_def")
    if not isinstance(part, Mapping) or "_target_" not in part:
        raise SourceError(f"{config.where}: network_def: expected a network with _target_, found {part!r}")
    name = target_of(part)
    try:
        find_network(name)
    except NetworkError as error:
        raise NetworkError(f"{config.where}: network_def: {error}") from None
    args = {
        key: config.plain(value, f"network_def::{key}")
        for key, value in part.items()
        if key != "_target_" and key not in GONE.get(name, ())
    }
    return {"name": name, "args": args}


def _one_format(metadata: Config, side: str, name: str) -> Mapping[str, Any]:
    """What network_data_format says of the image, which is the input, or of the prediction, which is the output."""
    formats = metadata.get(f"network_data_format::{side}")
    if not isinstance(formats, Mapping) or list(formats) != [name]:
        found = list(formats) if isinstance(formats, Mapping) else formats
        raise SourceError(f"{metadata.where}: network_data_format::{side}: expected {name!r} alone, found {found!r}")
    described: Mapping[str, Any] = formats[name]
    return described


def _names(metadata: Config, described: Mapping[str, Any], where: str, what: str) -> list[str]:
    """Names of channels in order, from channel_def (index -> name); numbers where it is missing.

    Raises:
        SourceError: channel_def does not fit num_channels.
    """
    count, names = described.get("num_channels"), described.get("channel_def") or {}
    if not isinstance(count, int) or count < 1:
        raise SourceError(
            f"{metadata.where}: network_data_format::{where}::num_channels: expected a number, found {count!r}"
        )
    if names and sorted(map(str, names)) != sorted(map(str, range(count))):
        raise SourceError(
            f"{metadata.where}: network_data_format::{where}::channel_def: expected one name for each of "
            f"{count} channels, 0 … {count - 1}, found {json.dumps(names)}"
        )
    ordered = {int(index): str(name) for index, name in names.items()}
    return [ordered.get(index, f"{what} {index}") for index in range(count)]


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{folder}: expected weights in {' or '.join(WEIGHTS)}, found neither; fetch the bundle again")
