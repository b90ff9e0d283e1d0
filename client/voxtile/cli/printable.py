"""Makes text of others fit for a terminal: one line, and nothing in it that a terminal would obey.

A model's title or a mask's passport may hold anything.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text in one line, with control characters, escapes and marks of direction spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))
