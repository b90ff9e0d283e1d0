"""Reads what a bundle's metadata says of the network's input and output: how many channels, their names, and sizes.

Metadata is written for people. How many channels there are must be right; names that do not fit are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import Config

MOST_CHANNELS = 65_536
"""Channels or labels at most: as many as a mask can tell apart."""
DEFINITIONS = ("channel_def", "label_def")
"""Keys under which bundles name their channels."""


@dataclass(frozen=True)
class Channels:
    """The channels of the network's input or output.

    Attributes:
        names: in order, each once.
        notes: which names do not come of the metadata, for the user.
        size: of the whole image that the network takes; None where it takes patches, or none is stated.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    size: tuple[int, ...] | None


def channels_of(metadata: Config, side: str, name: str, what: str) -> Channels:
    """What network_data_format says of one side.

    Args:
        metadata: the metadata.
        side: `inputs` or `outputs`.
        name: `image`, which is the input, or `pred`, which is the output.
        what: a channel is called where it has no name, such as `label`.

    Raises:
        SourceError: the side is described in another way, or has no such number of channels.
    """
    described = _one_format(metadata, side, name)
    count = described.get("num_channels")
    if type(count) is not int or not 1 <= count <= MOST_CHANNELS:
        raise SourceError(
            f"{metadata.where}: network_data_format::{side}::{name}::num_channels: expected a number from 1 to "
            f"{MOST_CHANNELS}, found {count!r}"
        )
    given = _given(described)
    names, invented = _names(given, count, what)
    where = f"network_data_format::{side}::{name}"
    notes = []
    if given and (invented or len(given) > count):
        notes.append(
            f"the metadata's {where} names {len(given)} of {count} channels"
            + (f"; {', '.join(invented[:3])}{' …' if len(invented) > 3 else ''} are made up" if invented else "")
        )
    return Channels(names, tuple(notes), _size(described))


def _one_format(metadata: Config, side: str, name: str) -> Mapping[str, Any]:
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


def _given(described: Mapping[str, Any]) -> dict[int, str]:
    """Names by the channel's number; those that are no texts, or whose number is none, are left out."""
    for key in DEFINITIONS:
        names = described.get(key)
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if isinstance(names, Mapping) and names:
            return {
                int(str(index)): name.strip()
                for index, name in names.items()
                if str(index).isdecimal() and isinstance(name, str) and name.strip()
            }
    return {}


def _names(given: Mapping[int, str], count: int, what: str) -> tuple[tuple[str, ...], list[str]]:
    """A name for each channel, each once, and which of them are made up."""
    found: list[str] = []
    invented: list[str] = []
    for index in range(count):
        name = given.get(index, "")
        if not name or name in found:
            name = f"{name or what} {index}"
            while name in found:
                name += "'"
            invented.append(name)
        found.append(name)
    return tuple(found), invented


def _size(described: Mapping[str, Any]) -> tuple[int, ...] | None:
    size = described.get("spatial_shape")
    if described.get("is_patch_data") is not False or not isinstance(size, list):
        return None
    return tuple(size) if len(size) == 3 and all(type(one) is int and one > 0 for one in size) else None
