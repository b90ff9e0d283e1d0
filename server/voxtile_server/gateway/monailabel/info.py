"""The answer to `/info/`: what MONAI Label's clients build their menus from. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from voxtile.card import Card
from voxtile.triton.catalogue import ModelListing
from voxtile_server import __version__
from voxtile_server.gateway.monailabel.names import values_by_name
from voxtile_server.gateway.monailabel.store import FINAL, Stored

STRATEGIES = {"first": {"description": "The image that came first of those without a final label", "config": {}}}


def info_of(listings: Iterable[ModelListing], images: Mapping[str, Stored]) -> dict[str, Any]:
    """The answer to `/info/`.

    Args:
        listings: what the server offers; models that cannot be used are left out.
        images: the caller's images.
    """
    models = {listing.name: _model(listing.card) for listing in listings if listing.card and not listing.problem}
    return {
        "name": "Voxtile",
        "description": "Models on NVIDIA Triton, by Voxtile's gateway",
        "version": __version__,
        "labels": list(dict.fromkeys(name for model in models.values() for name in model["labels"])),
        "models": models,
        "trainers": {},
        "strategies": STRATEGIES,
        "scoring": {},
        "train_stats": {},
        "datastore": stats_of(images),
    }


def stats_of(images: Mapping[str, Stored]) -> dict[str, Any]:
    """How many images there are, and how many of them have labels."""
    tags = [tag for one in images.values() for tag in one.labels]
    return {
        "total": len(images),
        "completed": tags.count(FINAL),
        "label_tags": {tag: tags.count(tag) for tag in dict.fromkeys(tags)},
    }


def all_of(images: Mapping[str, Stored]) -> dict[str, Any]:
    """All images and labels as MONAI Label's own datastore lists them."""
    objects = {name: {"image": _entry(name, one), "labels": _labels(name, one)} for name, one in images.items()}
    return {"name": "Voxtile", "description": "", "images_dir": "", "labels_dir": "", "objects": objects}


def pairs_of(images: Mapping[str, Stored]) -> list[dict[str, str]]:
    """The names of images that have a final label, and of their labels, which are the same."""
    return [{"image": name, "label": name} for name, one in images.items() if FINAL in one.labels]


def info_of_file(name: str, one: Stored) -> dict[str, Any]:
    """What there is to say of an image or a label."""
    return {**one.info, "ts": int(one.made_at), "name": f"{name}{one.ending}"}


def _entry(name: str, one: Stored) -> dict[str, Any]:
    return {"ext": one.ending, "info": info_of_file(name, one)}


def _labels(name: str, image: Stored) -> dict[str, Any]:
    return {tag: _entry(name, one) for tag, one in image.labels.items()}


def _model(card: Card) -> dict[str, Any]:
    return {
        "type": "segmentation",
        "labels": values_by_name(card.labels),
        "dimension": 3,
        "description": _description(card),
        "config": _config(card),
    }


def _description(card: Card) -> str:
    channels = card.input_channels
    several = f"; one 4D file of {len(channels)} channels: {', '.join(channels)}" if len(channels) > 1 else ""
    return f"{card.title or card.name}{several}"


def _config(card: Card) -> dict[str, Any]:
    """The options that a client offers its user, with values that change nothing."""
    mirror = {"mirror": True} if card.mirror_axes else {}
    return {**mirror, "skip_empty": False, "postprocessing": True}
