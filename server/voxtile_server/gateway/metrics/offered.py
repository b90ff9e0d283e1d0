"""What the servers behind the gateway offer when Prometheus asks: models, versions, engines, certificates.

Knows nothing of scans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from voxtile.card import Card, Certificate
from voxtile.errors import VoxtileError
from voxtile.triton.catalogue import ON_PURPOSE, ModelListing
from voxtile_server.gateway.metrics.drift import FIGURES, MOST_CHANNELS, short

PATIENCE_S = 4.0
"""Seconds that a scrape waits for the servers; Prometheus gives up after 10."""

Ask = Callable[[str], Sequence[ModelListing]]
"""Asks the server at an address what it offers; raises VoxtileError where it does not answer."""


@dataclass(frozen=True)
class Offer:
    """What all servers were found to offer, by their addresses; None for one that did not answer."""

    servers: Mapping[str, Sequence[ModelListing] | None]

    @property
    def models(self) -> dict[str, list[ModelListing]]:
        """The listings of each model, one for each server that has it or tried to load it."""
        found: dict[str, list[ModelListing]] = {}
        for listings in self.servers.values():
            # A model that is there in one version and not in another is there.
            wanted = {one.name: one for one in sorted(listings or (), key=lambda one: not one.problem)}
            for name, listing in wanted.items():
                if listing.state not in ON_PURPOSE:
                    found.setdefault(name, []).append(listing)
        return found

    @property
    def cards(self) -> dict[str, tuple[str, Card]]:
        """Version and card of each model that can be used, of the first server that has it."""
        usable = {name: [one for one in listings if one.card] for name, listings in self.models.items()}
        return {name: (found[0].version, found[0].card) for name, found in usable.items() if found and found[0].card}


class Offered(Collector):
    """What is offered, as it was when it was last asked for.

    Args:
        urls: of the servers.
        ask: asks one of them.
    """

    def __init__(self, urls: Sequence[str], ask: Ask) -> None:
        self._urls, self._ask = tuple(urls), ask
        self._offer = Offer({})
        self._asking: asyncio.Task[Offer] | None = None

    async def renew(self) -> Offer:
        """Asks all servers; one that has not answered after PATIENCE_S counts as gone until it has."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._all))
        done, _ = await asyncio.wait({self._asking}, timeout=PATIENCE_S)
        self._offer = self._asking.result() if done else Offer(dict.fromkeys(self._urls))
        return self._offer

    def _all(self) -> Offer:
        return Offer({url: self._one(url) for url in self._urls})

    def _one(self, url: str) -> Sequence[ModelListing] | None:
        try:
            return self._ask(url)
        except VoxtileError:
            return None

    def collect(self) -> Iterator[Metric]:
        """The families of Prometheus."""
        offer = self._offer
        up = GaugeMetricFamily("voxtile_triton_up", "Whether the server answers the gateway", labels=["url"])
        for url, listings in offer.servers.items():
            up.add_metric([url], float(listings is not None))
        ready = GaugeMetricFamily("voxtile_model_ready", "Whether each server could load the model", labels=["model"])
        builds = GaugeMetricFamily("voxtile_model_builds", "Different builds of the model that are served; 1 is right",
                                   labels=["model"])  # fmt: skip
        for name, found in offer.models.items():
            ready.add_metric([name], float(all(not one.problem for one in found)))
            if cards := {one.card.model_dump_json() for one in found if one.card}:
                builds.add_metric([name], len(cards))
        yield from (up, ready, builds)
        yield from _certified(offer)


def _certified(offer: Offer) -> Iterator[Metric]:
    info = GaugeMetricFamily("voxtile_model_info", "What answers under a model's name; always 1",
                             labels=["model", "version", "engine", "precision", "certificate"])  # fmt: skip
    accepted = GaugeMetricFamily("voxtile_certificate_accepted", "Whether the engine has met the limits of its spec",
                                 labels=["model", "certificate"])  # fmt: skip
    reservations = GaugeMetricFamily("voxtile_certificate_reservations", "How many things the certificate leaves open",
                                     labels=["model", "certificate"])  # fmt: skip
    inputs = GaugeMetricFamily("voxtile_certified_input", "Intensities of the scans that the certificate saw",
                               labels=["model", "certificate", "channel", "statistic", "bound"])  # fmt: skip
    for name, (version, card) in offer.cards.items():
        certificate = card.certificates.get(card.engine)
        labels = [name, short("" if certificate is None else certificate.sha256)]
        precision = "" if certificate is None else certificate.precision
        info.add_metric([name, version, card.engine, precision, labels[1]], 1)
        accepted.add_metric(labels, float(certificate is not None and certificate.accepted))
        reservations.add_metric(labels, len(certificate.reservations) if certificate else 1)
        for bounds, value in _ranges(certificate):
            inputs.add_metric([*labels, *bounds], value)
    yield from (info, accepted, reservations, inputs)


def _ranges(certificate: Certificate | None) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Channel, statistic and bound, with the value."""
    for one in certificate.inputs[:MOST_CHANNELS] if certificate else ():
        for figure in FIGURES:
            for bound, value in zip(("low", "high"), getattr(one, figure), strict=True):
                yield (one.channel, figure, bound), value
