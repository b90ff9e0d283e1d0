"""Asks the entries of a server that segment whole scans whether they can.

Triton calls an entry ready whose process has died, so each is given a scan that is none: one that lives refuses it.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtile.triton.connection import ConnectionConfig, connect
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.faults import Fault, classify

BACKEND = "voxtile"
ANSWER_S = 10.0
"""Seconds for an answer: a living process gives it at once, unless a scan goes before."""

REFUSAL = "image 1: expected a NIfTI file"
"""How a living process speaks of a scan that is none."""


@dataclass(frozen=True)
class ScanEntry:
    """An entry that segments whole scans.

    Attributes:
        name: its name.
        model: the public model that it segments with; empty where that is not known.
        problem: why it cannot be used; empty where it can.
        busy: whether other scans go before, so that it could not be asked.
    """

    name: str
    model: str
    problem: str = ""
    busy: bool = False


def scan_entries(endpoint: Endpoint, connection: ConnectionConfig) -> Iterator[ScanEntry]:
    """The scan entries of a server, by name; those that could not be loaded are `list_models`'s.

    Raises:
        ServerUnavailable: no server answers.
    """
    ready = sorted({name for name, state in endpoint.models() if state == "READY"})
    for name in ready:
        config = endpoint.config(name)
        if config.backend == BACKEND:
            yield entry_of(endpoint.url, connection, config, set(ready))


def entry_of(url: str, connection: ConnectionConfig, config: Any, ready: Collection[str]) -> ScanEntry:
    """Asks one entry.

    Args:
        url: HOST:PORT of its server.
        connection: how to reach the server.
        config: of the entry, as the server has it.
        ready: the names of all entries that are ready.
    """
    try:
        networks = [str(one["name"]) for one in json.loads(config.parameters["networks"].string_value)]
        model, *_ = networks
    except (KeyError, TypeError, ValueError):
        return ScanEntry(config.name, "", "it names no model; write it again with voxtile-build volume")
    missing = [one for one in networks if one not in ready]
    if missing:
        there = ", ".join(missing)
        advice = f"serve the model, or remove the entry with voxtile-build volume {model} --remove"
        return ScanEntry(config.name, model, f"it needs {there}, not offered here; {advice}")
    refusal = _asked(url, connection, config)
    if refusal is None:
        advice = f"write it again with voxtile-build volume {model}"
        return ScanEntry(config.name, model, f"it gave an answer to what is no scan; {advice}")
    status, text = refusal
    if REFUSAL in text:
        return ScanEntry(config.name, model)
    # A stream's errors have no status.
    if classify(status or "UNAVAILABLE", text) in (Fault.QUEUE_FULL, Fault.DEADLINE):
        return ScanEntry(config.name, model, busy=True)
    return ScanEntry(config.name, model, f"{text or status}; start the server again")


def _asked(url: str, connection: ConnectionConfig, config: Any) -> tuple[str, str] | None:
    """Status and text of the refusal of a scan that is none; None where it is not refused."""
    from tritonclient.grpc import InferInput

    given = InferInput("scan", [1, 1], "UINT8")
    given.set_data_from_numpy(np.zeros((1, 1), np.uint8))
    told: queue.Queue[Any] = queue.Queue()
    client, headers = connect(url, connection), dict(connection.headers)
    try:
        if config.model_transaction_policy.decoupled:
            _ask_stream(client, config.name, given, headers, told)
        else:
            client.async_infer(
                config.name, [given], lambda result, error: told.put(error), client_timeout=ANSWER_S, headers=headers
            )
        error = told.get(timeout=2 * ANSWER_S)
        return None if error is None else (str(error.status() or ""), str(error.message() or ""))
    except queue.Empty:
        return "StatusCode.DEADLINE_EXCEEDED", ""
    finally:
        client.close()


def _ask_stream(client: Any, name: str, given: Any, headers: Mapping[str, str], told: queue.Queue[Any]) -> None:
    client.start_stream(lambda result, error: told.put(error), stream_timeout=ANSWER_S, headers=headers)
    client.async_stream_infer(name, [given])
