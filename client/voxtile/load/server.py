"""What the servers say of a load: how long its requests waited in their queues and were computed, entry by entry.

The figures are those that Triton counts of all requests, whoever sent them; so they are read before and after, and
compared with what was sent. Knows nothing of clients or latencies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from voxtile.card import Card
from voxtile.errors import VoxtileError, in_one_line
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.statistics import EntryUse, Use, entries_behind, read_use
from voxtile.triton.versions import offered

SETTLING_S = 1.0
STEP_S = 0.05
"""Triton counts a request just after it has answered it: how long the last ones are waited for, and how often asked."""


class EntryShare(BaseModel):
    """The work of one entry behind a public name, all servers together.

    Attributes:
        entry: the entry's name.
        requests: requests that it answered.
        failed: requests that failed.
        tiles: tiles that it computed.
        executions: times that its engine ran, each on one batch of tiles.
        queue_seconds: seconds that a request waited for an instance of it, on average.
        compute_seconds: seconds that the batch with the request in it was computed, on average.
        queue_share: waiting, as a share of the time that requests spent at this entry.
        compute_share: computing, as a share of it.
        other_share: the rest of it.
        busy: instances of it that computed, on average over the load; 1.0 is one instance that never rests.
        busy_seconds: seconds that its instances computed, added up.
    """

    entry: str
    requests: int
    failed: int
    tiles: int
    executions: int
    queue_seconds: float
    compute_seconds: float
    queue_share: float
    compute_share: float
    other_share: float
    busy: float
    busy_seconds: float


class ServerWork(BaseModel):
    """What the servers did for a load.

    Attributes:
        entries: the entries behind the public names.
        tiles: tiles that the public names answered.
        own_seconds: seconds that the servers computed for a scan, on average: of each model, its busiest entry.
        note: why there is nothing to tell, or what it counts beside this load; empty where neither is so.
    """

    entries: list[EntryShare] = []
    tiles: int = 0
    own_seconds: float | None = None
    note: str = ""


class Watch:
    """Reads the servers' figures of some models, before a load and after it.

    Args:
        urls: HOST:PORT of the servers' gRPC services.
        connection: how to reach them.
        cards: the cards of the models that are asked, by their public names or NAME@VERSION.
    """

    def __init__(self, urls: Sequence[str], connection: ConnectionConfig, cards: Mapping[str, Card]) -> None:
        self._endpoints = [Endpoint(url, connection) for url in urls]
        self._behind: dict[str, list[str]] = {}  # by the public entry
        self._parts = {
            name: [part.model for part in card.parts.models] if card.parts else [name] for name, card in cards.items()
        }
        self._before: Use | None = None
        self._note = ""

    def begin(self) -> None:
        """Notes the figures before a load."""
        try:
            for name in {part for parts in self._parts.values() for part in parts}:
                entry = offered(self._endpoints[0], name).served_as
                self._behind.setdefault(entry, entries_behind(self._endpoints[0], entry))
            self._before = self._read()
        except VoxtileError as error:
            self._before, self._note = None, f"the server does not tell its figures: {in_one_line(error)}"

    def end(self, wall_s: float, scans: Mapping[str, int], tiles: int, *, exact: bool) -> ServerWork:
        """Returns what was done since `begin`.

        Args:
            wall_s: seconds that the load took.
            scans: by each model, the scans that it segmented.
            tiles: tiles that were sent for them.
            exact: every tile sent was counted once, so that what exceeds them is others' work.
        """
        if self._before is None:
            return ServerWork(note=self._note)
        try:
            work = self._settled(self._before, tiles)
        except VoxtileError as error:
            return ServerWork(note=f"the server does not tell its figures: {in_one_line(error)}")
        if any(one.requests < 0 or one.server_s < 0 for one in work.values()):
            return ServerWork(note="a server was started anew meanwhile, and has forgotten what it did before")
        answered = self._answered(work)
        foreign = answered - tiles if exact else 0
        return ServerWork(
            entries=[_share(name, work.get(name, EntryUse()), wall_s) for name in self._entries()],
            tiles=answered,
            own_seconds=self._own_seconds(work, scans) if exact and foreign <= 0 else None,
            note=f"{foreign:,} tiles of other clients are among these" if foreign > 0 else "",
        )

    def close(self) -> None:
        """Ends the connections."""
        for endpoint in self._endpoints:
            endpoint.close()

    def _read(self) -> Use:
        use: Use = {}
        for endpoint in self._endpoints:
            for name, one in read_use(endpoint).items():
                use[name] = use.get(name, EntryUse()) + one
        return use

    def _settled(self, before: Use, tiles: int) -> Use:
        """The work since `before`, once it holds `tiles`, or no more come."""
        for _ in range(round(SETTLING_S / STEP_S)):
            work = self._since(before)
            if self._answered(work) >= tiles:
                break
            time.sleep(STEP_S)
        return self._since(before)

    def _since(self, before: Use) -> Use:
        return {name: one - before.get(name, EntryUse()) for name, one in self._read().items()}

    def _answered(self, work: Use) -> int:
        return sum(work.get(name, EntryUse()).tiles for name in self._behind)

    def _entries(self) -> Iterator[str]:
        return iter(dict.fromkeys(entry for name in sorted(self._behind) for entry in self._behind[name]))

    def _own_seconds(self, work: Use, scans: Mapping[str, int]) -> float | None:
        """Entries of one model may work at the same time; the busiest one bounds how fast a scan can be."""
        total = sum(scans.values())
        if not total:
            return None
        # A name and the version that it stands for have the same entries behind them.
        busy = {tuple(one): max(work.get(entry, EntryUse()).busy_s for entry in one) for one in self._behind.values()}
        return sum(busy.values()) / total


def _share(name: str, use: EntryUse, wall_s: float) -> EntryShare:
    spent = use.server_s or 1.0  # without requests every share is 0
    return EntryShare(
        entry=name,
        requests=use.requests,
        failed=use.failed,
        tiles=use.tiles,
        executions=use.executions,
        queue_seconds=use.queue_s / max(use.requests, 1),
        compute_seconds=use.compute_s / max(use.requests, 1),
        queue_share=use.queue_s / spent,
        compute_share=use.compute_s / spent,
        other_share=(use.server_s - use.queue_s - use.compute_s) / spent,
        busy=use.busy_s / wall_s if wall_s > 0 else 0.0,
        busy_seconds=use.busy_s,
    )
