"""Makes text of others fit for a terminal: nothing in it that a terminal would obey.

A model's title, a mask's passport or a spec may hold anything. Knows no command.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text in one line, without needless spaces, with control characters and marks of direction spelled out."""
    return escaped(" ".join(text.split()))


def escaped(line: str) -> str:
    """Returns a line with control characters, ends of lines and marks of direction spelled out; its spaces stay."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def escaped_lines(text: str) -> str:
    """Returns text of several lines, each of them as `escaped` gives it."""
    return "\n".join(map(escaped, text.split("\n")))
