"""The networks that a scan entry segments with, read from its config.pbtxt.

Knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile.card import parse_card
from voxtile.triton.types import ServedModel

from ..contract import ConfigError

NETWORKS = "networks"
"""The parameter of config.pbtxt with a JSON list: the model, then all that it needs, such as a cascade's first stage.

Each is `{"name": text, "card": text, "version": text, "max_batch_size": number, "config": path, "at_once": number}`.
`config` leads from the entry's folder to the network's own config.pbtxt, as it lay when the entry was written.
`at_once` is how many requests keep its engines busy; it may be missing. So may `entry`, the entry that tiles are sent
to where that is one version's own and not the public one.
"""

SERVER = os.environ.get("TRITON_SERVER_VERSION", "")
"""The server's version, which a mask's passport names as the client's does; every start of a server sets it."""

CARD = re.compile(r'key:\s*"card"\s*value\s*\{\s*string_value:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
"""The card in a config.pbtxt, as protobuf writes it."""


@dataclass(frozen=True)
class Network:
    """A network that a scan entry sends tiles to.

    Attributes:
        model: the model.
        at_once: requests of one scan inside Triton, at most; None where nobody knows how many keep its engines busy.
    """

    model: ServedModel
    at_once: int | None = None


def networks_of(parameters: Mapping[str, str], entry: Path) -> dict[str, Network]:
    """The networks that an entry names, by their names; the one whose labels are the mask comes first.

    A network may have been built again since the entry was written, so its own config.pbtxt goes before the card in
    the entry. There is none where the entry lies elsewhere, such as in a cloud's storage.

    Args:
        parameters: those of config.pbtxt.
        entry: the entry's folder.

    Raises:
        ConfigError: none can be read.
        ModelError: a card is not one that this client reads.
    """
    try:
        described = json.loads(parameters[NETWORKS])
        found = {str(one["name"]): _network(one, entry) for one in described}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"parameter {NETWORKS!r} cannot be read ({error!r}); {_AGAIN}") from error
    if not found:
        raise ConfigError(f"parameter {NETWORKS!r} names no network; {_AGAIN}")
    return found


_AGAIN = "write the entry again with voxtile-build volume"


def _network(described: Mapping[str, Any], entry: Path) -> Network:
    name = str(described["name"])
    text = _own_card(entry / str(described["config"])) or str(described["card"])
    asked, version = str(described.get("entry", "")), str(described["version"])
    model = ServedModel(parse_card(text, name), version, int(described["max_batch_size"]), text, SERVER, asked)
    return Network(model, int(described["at_once"]) if "at_once" in described else None)


def _own_card(config: Path) -> str | None:
    try:
        found = CARD.search(config.read_text(encoding="utf-8"))
    except OSError:
        return None
    if found is None:
        return None
    data, _ = codecs.escape_decode(found[1].encode())
    return bytes(data).decode()
