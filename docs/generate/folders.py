"""The pages in a folder of docs/, and their titles."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]


def pages_of(folder: str) -> list[str]:
    """Returns the pages in a folder such as "decisions/", in the order of their names, relative to docs/."""
    return [file.relative_to(DOCS).as_posix() for file in sorted((DOCS / folder).glob("*.md"))]


def title_of(file: Path) -> str:
    """Returns a page's heading."""
    found = re.search(r"^# (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else file.stem
