"""The index of the decisions: each page's title and status."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate.markdown import table

FOLDER = Path(__file__).parents[1] / "decisions"
INDEX = "decisions/index.md"
INTRODUCTION = """\
# Decisions

Each page says what was chosen, instead of what, why, and at what price. A later decision gets a page of its own, which
names the one that it replaces."""


def page() -> str:
    """Returns the page as Markdown."""
    rows = [(f"[{title(file)}]({file.name})",) for file in files()]
    return f"{INTRODUCTION}\n\n{table(('decision',), rows)}\n"


def files() -> list[Path]:
    """Returns the pages in order."""
    return sorted(FOLDER.glob("[0-9]*.md"))


def title(file: Path) -> str:
    """Returns a page's heading."""
    found = re.search(r"^# (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else file.stem
