"""Reads what a Triton server counts of its own work: requests, waiting, computing. Knows nothing of who asked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from voxtile.triton.endpoint import Endpoint

NS = 1e-9


@dataclass(frozen=True)
class EntryUse:
    """What an entry of a server's repository has done since the server started.

    Attributes:
        requests: requests that were answered.
        failed: requests that failed.
        tiles: elements of batches that were computed.
        executions: times that the engine ran, each on one batch.
        server_s: seconds that the requests answered were in the server, added up.
        queue_s: those of them that requests waited for an instance. An ensemble has none of its own.
        compute_s: those of them that a batch with the request in it was computed, its tensors' copying included.
        busy_s: seconds that instances computed: as `compute_s`, but each batch counts once, however many requests are
            in it.
    """

    requests: int = 0
    failed: int = 0
    tiles: int = 0
    executions: int = 0
    server_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: EntryUse) -> EntryUse:
        return EntryUse(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __sub__(self, other: EntryUse) -> EntryUse:
        return EntryUse(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


Use = dict[str, EntryUse]
"""By the entry's name; all its versions together."""


def read_use(endpoint: Endpoint) -> Use:
    """Returns what each entry of a server has done.

    Raises:
        ServerUnavailable: no server answers, or it does not tell.
        AccessError: it does not tell this user.
    """
    use: Use = {}
    for entry in endpoint._control("get_inference_statistics").model_stats:
        use[entry.name] = use.get(entry.name, EntryUse()) + _use_of(entry)
    return use


def entries_behind(endpoint: Endpoint, name: str) -> list[str]:
    """Returns the entries that a public name leads to, in the order of its steps; the name itself where it has none.

    Raises:
        ModelError: the server does not offer it.
        ServerUnavailable: no server answers.
    """
    steps = [step.model_name for step in endpoint.config(name).ensemble_scheduling.step]
    return list(dict.fromkeys(steps)) or [name]


def _use_of(entry: Any) -> EntryUse:
    stats = entry.inference_stats
    computing = (stats.compute_input, stats.compute_infer, stats.compute_output)
    batches = [(one.compute_input, one.compute_infer, one.compute_output) for one in entry.batch_stats]
    return EntryUse(
        requests=stats.success.count,
        failed=stats.fail.count,
        tiles=entry.inference_count,
        executions=entry.execution_count,
        server_s=stats.success.ns * NS,
        queue_s=stats.queue.ns * NS,
        compute_s=sum(part.ns for part in computing) * NS,
        busy_s=sum(part.ns for parts in batches for part in parts) * NS,
    )
