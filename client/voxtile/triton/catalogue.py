"""What a server offers: its public entries, each with its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from voxtile.card import Card
from voxtile.errors import ModelError, NoCardError
from voxtile.triton.endpoint import Endpoint


@dataclass(frozen=True)
class ModelListing:
    """A public entry. problem: why it cannot be used, or empty."""

    url: str
    name: str
    version: str = ""
    card: Card | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "url": self.url,
            "usable": not self.problem,
            "problem": self.problem,
            "card": self.card.model_dump(mode="json") if self.card else None,
        }

    def row(self) -> tuple[str, ...]:
        """The fields of a table: model, what, channels, ROI, spacing, labels, engine, certificate."""
        if self.card is None:
            return (self.name, self.problem, "", "", "", "", "", "")
        card = self.card
        certificate = card.certificates.get(card.engine)
        return (
            self.name,
            card.title,
            ", ".join(card.input_channels),
            "×".join(map(str, card.roi_size)) if card.multiple is None else "whole slices",
            "×".join(f"{size:g}" for size in card.spacing) if card.spacing else "as stored",
            ", ".join(label.name for label in card.labels),
            card.engine if certificate is None else f"{card.engine} {certificate.precision}",
            "none"
            if certificate is None
            else f"Dice ≥ {certificate.dice_min:.4f}"
            if certificate.accepted
            else "failed",
        )


def list_models(endpoint: Endpoint) -> list[ModelListing]:
    """The entries of the server that carry a card, by name; entries without one are engines behind public names.

    Raises ServerUnavailable where no server answers.
    """
    offers = []
    for name, state in sorted(set(endpoint.models())):
        if state != "READY":
            offers.append(
                ModelListing(endpoint.url, name, problem=f"the server could not load it (state {state or 'unknown'})")
            )
            continue
        try:
            model = endpoint.model(name)
        except NoCardError:
            continue
        except ModelError as error:
            offers.append(ModelListing(endpoint.url, name, problem=str(error)))
            continue
        offers.append(ModelListing(endpoint.url, name, model.version, model.card))
    return offers
