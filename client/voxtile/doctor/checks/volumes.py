"""Faults of entries that segment whole scans: models that are gone, or are no longer those of the entry."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxtile.card import Card, parse_card
from voxtile.doctor.entry import Entry, is_there
from voxtile.doctor.finding import Finding
from voxtile.errors import ModelError

BACKEND = "voxtile"
NETWORKS = "networks"
ENDINGS = ("_scan_stream", "_scan")


def check_volume(entry: Entry, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Faults of an entry for whole scans.

    Args:
        entry: the entry; one of another backend has none.
        entries: of all repositories, by name.
    """
    if entry.config is None or entry.backend != BACKEND:
        return
    where = str(entry.config_file)
    model = next((entry.name.removesuffix(end) for end in ENDINGS if entry.name.endswith(end)), entry.name)
    again = f"voxtile-build volume {model}"
    try:
        networks = [_network(one) for one in json.loads(entry.config.parameters[NETWORKS].string_value)]
    except (AttributeError, KeyError, TypeError, ValueError, ModelError, RecursionError) as error:
        networks = []
        fault = f"parameter {NETWORKS!r} cannot be read ({' '.join(str(error).split())})"
    else:
        fault = "" if networks else f"parameter {NETWORKS!r} names no network"
    if fault:
        yield Finding("error", "volume-unreadable", where, fault, "the entry does not load", f"write it again: {again}")
    for name, card, version, batch, config in networks:
        behind = entries.get(name)
        if behind is None:
            if not is_there(_beside(entry, config)):
                yield Finding(
                    "error",
                    "volume-model-missing",
                    where,
                    f"it needs the model {name!r}, which is not there",
                    "every scan would fail",
                    f"bring the model back, or remove the entry: {again} --remove",
                )
        elif (public := _moved(behind, version, entries)) is not None:
            yield Finding(
                "error",
                "volume-other-version",
                where,
                f"it segments with version {version}, and {public.name!r} stands for version {public.served[-1]}",
                "masks by the entry and by the public name come from two versions",
                f"write it again: {again}",
            )
        elif behind.card is not None and behind.config is not None:
            served = (version in map(str, behind.served), max(behind.config.max_batch_size, 1) == batch)
            if not all(served) or _contract(card) != _contract(behind.card):
                yield Finding(
                    "warning",
                    "volume-stale",
                    where,
                    f"it was written for another build of {name!r}",
                    "where it cannot see the model's folder, it would send other tiles than the model takes",
                    f"write it again: {again}",
                )


def _moved(behind: Entry, version: str, entries: Mapping[str, Entry]) -> Entry | None:
    """The public entry of the version's own entry `behind`, where that stands for another version now."""
    public = None if behind.card is None else entries.get(behind.card.name)
    if public is None or public is behind or public.card is None or not public.served:
        return None
    return None if version in map(str, public.served) else public


def _network(described: Any) -> tuple[str, Card, str, int, str]:
    """Entry, card, version, batch and place of a network, as the backend reads them."""
    name = str(described.get("entry") or described["name"])
    card = parse_card(str(described["card"]), name)
    return name, card, str(described["version"]), int(described["max_batch_size"]), str(described["config"])


def _contract(card: Card) -> dict[str, Any]:
    """A card without what changes nothing of a mask: `voxtile-build verify` adds devices to certificates."""
    return card.model_dump(exclude={"certificates", "title"})


def _beside(entry: Entry, config: str) -> Path:
    return Path(os.path.realpath(entry.folder), config)
