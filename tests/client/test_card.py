"""The card: its published schema, what it refuses, and cards of other versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.cards import card
from voxtile.card import SCHEMA_VERSION, Card, parse_card
from voxtile.errors import ModelError

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/reference/card.schema.json"


def test_the_published_schema_is_current() -> None:
    generated = subprocess.run([sys.executable, "-m", "voxtile.card"], capture_output=True, text=True, check=True)
    assert generated.stdout == PUBLISHED.read_text(), "run: python -m voxtile.card > docs/reference/card.schema.json"


def test_a_card_passes_the_published_schema_and_reads_back_the_same() -> None:
    read = parse_card(json.dumps(card()), "model")
    again = json.loads(read.model_dump_json())
    jsonschema.validate(again, json.loads(PUBLISHED.read_text()))
    assert Card.model_validate(again) == read


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"roi_size": [32, 32]}, "a 2D roi_size needs a slice_axis"),
        ({"roi_size": [0, 32, 32]}, "roi_size.0"),
        ({"output": {"kind": "logits", "scores": 3}}, "2 labels need 2 scores, not 3"),
        ({"output": {"kind": "foreground", "scores": 2}}, "need 1 scores"),
        ({"mirror_axes": [0, 3]}, "mirror_axes"),
        ({"orientation": "RAX"}, "orientation"),
        ({"orientation": "RLS"}, "orientation"),
        ({"spacing": [1.0, 0.0, 1.0]}, "spacing.1"),
        ({"tiling": {"overlap": 1.0}}, "tiling.overlap"),
        ({"intensity": {"rule": "guess"}}, "intensity"),
        ({"intensity": {"rule": "range", "a_min": 5, "a_max": 5}}, "expected a_max above a_min"),
        ({"labels": []}, "labels"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_by_its_field(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ModelError, match=rf"model 'm': its card does not fit the schema.*{where}"):
        parse_card(json.dumps(card(**changes)), "m")


def test_a_card_of_a_newer_schema_is_refused_whatever_it_holds() -> None:
    with pytest.raises(
        ModelError, match=f"schema version 99, this client reads up to {SCHEMA_VERSION}; update voxtile"
    ):
        parse_card(json.dumps({"schema_version": 99, "unknown": {}}), "m")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"card"'])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="model 'm': its card"):
        parse_card(text, "m")
