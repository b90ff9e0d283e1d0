"""Builds HTML as a tree, so that every text in it is escaped by the library that writes it. Knows no page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

Content = ElementTree.Element | str


def element(tag: str, *content: Content, **attributes: str) -> ElementTree.Element:
    """An element of HTML.

    Args:
        tag: its name.
        *content: texts and elements in it, in order.
        **attributes: its attributes; `class_` is class, and other underscores are hyphens.
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    made = ElementTree.Element(tag, named)
    for one in content:
        if not isinstance(one, str):
            made.append(one)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + one
        else:
            made.text = (made.text or "") + one
    return made


def table(caption: str, rows: Iterable[tuple[str, str]]) -> ElementTree.Element:
    """A table of names and what each of them is."""
    lines = [element("tr", element("th", name, scope="row"), element("td", text)) for name, text in rows]
    return element("div", element("table", element("caption", caption), element("tbody", *lines)), class_="scroll")


def items(texts: Sequence[str]) -> ElementTree.Element:
    """A list of sentences."""
    return element("ul", *(element("li", text) for text in texts))


def data(name: str, value: Any) -> ElementTree.Element:
    """What a script on the page reads by its name, as JSON. No text in it can end the element."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return element("script", text, id=name, type="application/json")


def html(document: ElementTree.Element) -> str:
    """The text of a file of HTML. Texts of scripts and styles stand in it as they are."""
    return "<!doctype html>\n" + ElementTree.tostring(document, encoding="unicode", method="html") + "\n"
