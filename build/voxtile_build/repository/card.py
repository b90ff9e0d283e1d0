"""The model card: what a client must know, taken from the spec and the certificates, as one JSON object.

The form is the client's; here lies a copy of its published schema, against which every card is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jsonschema

from voxtile_build.errors import BuildError
from voxtile_build.spec.spec import PADDING, Spec, Tiling

SCHEMA_VERSION = 1


def card_of(
    spec: Spec, engine: str, certificates: Mapping[str, Mapping[str, Any]], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The card of the public entry that points to `engine`, checked against the published schema.

    `certificates`: by engine, the short form (`certificate.short_form`); `provenance`: hashes, versions, terms.
    """
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": spec.name,
        "title": spec.title,
        "channels": list(spec.input.channels),
        "orientation": spec.input.orientation,
        "spacing": _list(spec.input.spacing),
        # What the graph does with the figures is no matter of the client's.
        "intensity": spec.input.intensity.model_dump(mode="json", exclude={"keep_zero"}),
        "roi_size": list(spec.tiling.roi_size),
        "slice_axis": spec.tiling.slice_axis,
        # Left out where it says nothing, so that clients of before read the card too.
        **({} if spec.tiling.multiple is None else {"multiple": spec.tiling.multiple}),
        "input": {"dtype": spec.input.dtype, "padding": PADDING[spec.input.dtype]},
        "output": _output(spec),
        "labels": _labels(spec),
        "regions": spec.output.regions,
        "tiling": _tiling(spec.tiling),
        "mirror_axes": list(spec.tiling.mirror_axes),
        "background": None if spec.tiling.background_at_most is None else {"at_most": spec.tiling.background_at_most},
        "nnunet": spec.nnunet,
        "engine": engine,
        "certificates": {name: dict(short) for name, short in certificates.items()},
        "provenance": dict(provenance),
    }
    check_card(card)
    return card


def check_card(card: Mapping[str, Any]) -> None:
    """Refuse a card that does not fit the published schema; it would be of no use to any client."""
    try:
        jsonschema.validate(card, schema())
    except jsonschema.ValidationError as error:
        where = ".".join(str(step) for step in error.absolute_path) or "card"
        raise BuildError(f"the card does not fit card.schema.json at {where}: {error.message}") from error


def schema() -> dict[str, Any]:
    """The packaged copy of docs/reference/card.schema.json."""
    text = resources.files(__package__).joinpath("card.schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _output(spec: Spec) -> dict[str, Any]:
    output = spec.output
    card = {"kind": output.scores, "dtype": output.dtype, "scores": output.score_count, "scale": output.scale}
    # Left out where it says nothing, so that clients of before read the card too.
    return card if output.activation == "none" else {**card, "activation": output.activation}


def _tiling(tiling: Tiling) -> dict[str, Any]:
    """Numbers for each axis are those of the scan's axes; the one that a 2D network does not see shares nothing."""
    card = tiling.model_dump(mode="json", include={"semantics", "overlap", "mode", "sigma_scale"})
    for key, unseen in (("overlap", 0.0), ("sigma_scale", 1.0)):
        if tiling.slice_axis is not None and isinstance(card[key], list):
            card[key].insert(tiling.slice_axis, unseen)
    return card


def _labels(spec: Spec) -> list[dict[str, Any]]:
    """A mask of one class has that class alone."""
    chosen = spec.output.labels
    if spec.output.scores == "foreground":
        chosen = (chosen[spec.output.foreground_index],)
    return [label.model_dump(mode="json") for label in chosen]


def _list(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)
