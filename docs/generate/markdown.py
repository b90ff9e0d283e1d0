"""Pieces of Markdown. Knows nothing of the code that is described."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; line breaks and bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Returns `text` as code; nothing for an empty text."""
    return f"`{text}`" if text else ""


def first_sentence(docstring: str | None) -> str:
    """Returns the first sentence of a docstring, on one line, without its full stop."""
    paragraph = " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


def one_line(text: str) -> str:
    """Returns `text` on one line, without a full stop."""
    return " ".join(text.split()).removesuffix(".")


def _cell(text: str) -> str:
    """Escapes bars outside of code. Within code a bar separates no cells."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if index % 2 else part.replace("|", "\\|") for index, part in enumerate(parts))
