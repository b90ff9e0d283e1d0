"""The page of the card: what a public entry says of itself."""

from __future__ import annotations

from docs.generate.fields import Section, sections_of
from docs.generate.markdown import code
from voxtile.card import SCHEMA_VERSION, Card

INTRODUCTION = f"""\
# The card

The card says all that a client must know about a model. It is one JSON object. The public entry carries it in its
`config.pbtxt`, in `parameters` under the key `card`. Every client can read it: `get_model_config` is a part of Triton's
protocol. The schema has version {SCHEMA_VERSION}; a client refuses a card of a newer version. The same as JSON Schema:
[card.schema.json](card.schema.json). Why there is a card: [decision 3](../decisions/0003-the-card.md)."""


def page() -> str:
    """Returns the page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(section.as_markdown(_title(section)) for section in sections_of(Card))]) + "\n"


def _title(section: Section) -> str:
    name = code(section.path) or "The object"
    return f"{name}, {code(section.chosen)}" if section.chosen else name
