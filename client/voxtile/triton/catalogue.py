"""Lists what a server offers: its public entries, each with its card.

Knows nothing of tables' looks or of terminals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from voxtile.card import Card, Certificate, parse_card
from voxtile.errors import ModelError, NoCardError, ServerUnavailable
from voxtile.triton.endpoint import UNLOADED, Endpoint
from voxtile.triton.on_demand import ENTRY, Offer
from voxtile.triton.versions import MARK, VERSION_ENTRY, version_entry

ON_PURPOSE = {"": "nobody has asked the server for it", UNLOADED: "the server was asked to unload it"}
"""States of an entry that is not loaded because nobody wants it to be, and why that is so."""


@dataclass(frozen=True)
class ModelListing:
    """A public entry of a server's repository.

    Attributes:
        url: the server.
        name: the public name; NAME@VERSION for the entry of one version.
        version: the version that is served.
        card: its card; None where it cannot be used.
        problem: why it cannot be used; empty where it can.
        state: the server's word for it, such as READY.
        loaded: false where the server loads it only when it is asked for, or was not asked to.
    """

    url: str
    name: str
    version: str = ""
    card: Card | None = None
    problem: str = ""
    state: str = "READY"
    loaded: bool = True

    @property
    def at_fault(self) -> bool:
        """Whether something is wrong: it cannot be used, and that is nobody's wish."""
        return bool(self.problem) and self.state not in ON_PURPOSE

    def as_json(self) -> dict[str, Any]:
        """The entry as plain values for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "url": self.url,
            "usable": not self.problem,
            "problem": self.problem,
            "loaded": self.loaded,
            "channels": list(self.card.input_channels) if self.card else [],
            "card": self.card.model_dump(mode="json") if self.card else None,
        }

    def row(self) -> tuple[str, ...]:
        """The cells of a table's row: model, version, what, channels, ROI, spacing, labels, engine, certificate."""
        if self.card is None:
            return (self.name, "", self.problem, "", "", "", "", "", "")
        card = self.card
        certificate = card.certificates.get(card.engine)
        return (
            self.name,
            self.version,
            card.title,
            ", ".join(card.input_channels),
            "×".join(map(str, card.roi_size)) if card.multiple is None else "whole slices",
            "×".join(f"{size:g}" for size in card.resampled_to) if card.resampled_to else "as stored",
            ", ".join(label.name for label in card.labels),
            (card.engine if certificate is None else f"{card.engine} {certificate.precision}")
            + ("" if self.loaded else ", not loaded"),
            "; ".join((_verdict(certificate), *_student(card))),
        )


def _student(card: Card) -> tuple[str, ...]:
    """Of whom the network is a student, in words; nothing for any other network."""
    student = card.provenance.student_of
    return () if student is None else (student.in_words, *student.reservations)


def _verdict(certificate: Certificate | None) -> str:
    if certificate is None:
        return "none"
    if not certificate.accepted:
        return "failed"
    return "; ".join((f"Dice ≥ {certificate.dice_min:.4f}", *certificate.reservations))


def list_models(endpoint: Endpoint, *, versions: bool = False) -> list[ModelListing]:
    """Lists the entries that carry a card, and those that could not be loaded, by name.

    Entries without a card are engines behind public names; they are left out. A server that loads models on demand
    lists those too that it has not loaded; nothing is loaded for the list.

    Args:
        endpoint: the server.
        versions: whether entries that keep one version of a model are listed too, as NAME@VERSION.

    Raises:
        ServerUnavailable: no server answers.
    """
    entries = sorted(set(endpoint.models()))
    if any(name == ENTRY and state == "READY" for name, state in entries):
        found = [_offered(endpoint, offer) for offer in endpoint.on_demand().values()]
    else:
        # The version that a public name stood for before has a line too.
        ready = {name for name, state in entries if state == "READY"}
        entries = [(name, state) for name, state in entries if state == "READY" or name not in ready]
        found = [listing for name, state in entries if (listing := _listing(endpoint, name, state)) is not None]
    return [listing for listing in found if versions or MARK not in listing.name]


def _offered(endpoint: Endpoint, offer: Offer) -> ModelListing:
    """An entry of a server that loads on demand."""
    try:
        card = parse_card(offer.card, offer.name)
    except ModelError as error:
        return ModelListing(endpoint.url, offer.name, problem=str(error), loaded=offer.loaded)
    shown = offer.name
    if offer.name == version_entry(card.name, offer.version):
        shown = f"{card.name}{MARK}{offer.version}"
    else:
        card = card.model_copy(update={"name": offer.name})
    return ModelListing(endpoint.url, shown, offer.version, card, loaded=offer.loaded)


def _listing(endpoint: Endpoint, name: str, state: str) -> ModelListing | None:
    if state in ON_PURPOSE:
        kept = re.fullmatch(VERSION_ENTRY, name)
        shown = MARK.join(kept.groups()) if kept else name
        return ModelListing(endpoint.url, shown, problem=f"not loaded: {ON_PURPOSE[state]}", state=state, loaded=False)
    if state != "READY":
        return ModelListing(endpoint.url, name, problem=f"the server could not load it (state {state})", state=state)
    try:
        model = endpoint.model(name)
    except NoCardError:
        return None
    except ModelError as error:
        return ModelListing(endpoint.url, name, problem=str(error))
    except ServerUnavailable as error:
        endpoint.check_live()  # raises where the server is at fault, not the entry
        return ModelListing(endpoint.url, name, problem=str(error))
    is_version = name != model.card.name
    shown = f"{model.card.name}{MARK}{model.version}" if is_version else name
    return ModelListing(endpoint.url, shown, model.version, model.card)
