"""Makes one file of a page: its scripts, styles and data within it, and a policy that lets it load nothing else.

Knows no page in particular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from voxtile.outputs.page import elements
from voxtile.outputs.page.elements import element
from voxtile.outputs.page.policy import policy


def document(
    title: str,
    content: Sequence[Element],
    scripts: Sequence[str],
    style: str,
    told: Mapping[str, Any] | None = None,
    carried: Mapping[str, str] | None = None,
) -> str:
    """The text of a file of HTML.

    Args:
        title: what the browser calls it.
        content: what is seen.
        scripts: what runs, in order; the last one is a module.
        style: how it looks.
        told: what the scripts read, from the element `told`, as JSON.
        carried: texts that the scripts read, such as base64, by the names of their elements.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(scripts, [style])),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    data = [element("script", text, id=name, type="text/plain") for name, text in (carried or {}).items()]
    run = [*(element("script", text) for text in scripts[:-1]), element("script", scripts[-1], type="module")]
    body = element("body", *content, *data, elements.data("told", told or {}), *run)
    return elements.html(element("html", head, body, lang="en"))


def section(name: str, title: str, *content: Element) -> Element:
    """A part of a page, with its heading, which is also its name for those who do not see it."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")
