"""The page of the spec: every key of models/NAME.toml."""

from __future__ import annotations

from docs.generate.fields import Section, sections_of
from docs.generate.markdown import code
from voxtile_build.spec.spec import Spec

INTRODUCTION = """\
# The spec

A spec is a TOML file that describes one model. [Write a spec](../how-to/spec.md) explains how to choose the values.
This page lists every key with its type, its default and its meaning. Unknown keys and wrong values are refused, and
the message names the key and its meaning. File names are relative to the spec."""


def page() -> str:
    """Returns the page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(section.as_markdown(_title(section)) for section in sections_of(Spec))]) + "\n"


def _title(section: Section) -> str:
    name = f"`[{section.path}]`" if section.path else "The top of the file"
    return f"{name}, {code(section.chosen)}" if section.chosen else name
