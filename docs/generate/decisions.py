"""The index of the decisions: each page's title."""

from __future__ import annotations

from docs.generate.folders import DOCS, pages_of, title_of
from docs.generate.markdown import table

FOLDER = "decisions/"
INTRODUCTION = """\
# Decisions

Each page says what was chosen, instead of what, why, and at what price. A later decision gets a page of its own, which
names the one that it replaces."""


def page() -> str:
    """Returns the page as Markdown."""
    rows = [(f"[{title_of(DOCS / page)}]({page.removeprefix(FOLDER)})",) for page in pages_of(FOLDER)]
    return f"{INTRODUCTION}\n\n{table(('decision',), rows)}\n"
