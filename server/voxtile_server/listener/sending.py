"""Sends what was made of a series to the PACS that a rule names, each once. Knows nothing of how it was made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from voxtile.errors import VoxtileError
from voxtile.pacs.store import store
from voxtile_server.listener.making import Made
from voxtile_server.listener.series import Series
from voxtile_server.listener.settings import Settings
from voxtile_server.listener.spool import read_json, write_json

SENT = "sent.json"


def send(series: Series, made: Made, targets: Sequence[str], settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Sends all objects to each target that does not have them yet.

    Returns:
        What each target has now: which objects were stored and which were there already; and what those said that do
        not take them.
    """
    noted = series.result / SENT
    sent: dict[str, Any] = read_json(noted) or {}
    failures = []
    kinds = {file: kind for kind, file in made.files.items()}
    for name in targets:
        address, access = settings.reach(name)
        key = hashlib.sha256(settings.pacs[name].address.encode()).hexdigest()
        if key in sent:
            continue
        try:
            kept = store(list(made.files.values()), address, access)
        except VoxtileError as error:
            failures.append(f"{name}: {error}")
            continue
        sent[key] = {
            "to": address.name,
            "stored": [kinds[file] for file in kept.stored],
            "there": [kinds[file] for file in kept.there],
        }
        write_json(noted, sent)
    return sent, failures
