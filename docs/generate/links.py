"""Moves relative links from the repository's folders to the site's. Knows nothing of MkDocs.

In the repository a link leads to a file of the repository. In the site some of these files are pages at another place,
and others are not there at all: links to those become plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
NAMED = re.compile(r"\bpage \*([^*\n]+)\*")
"""How a page of the repository names one that is generated, which is no file to link to."""
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def relocate(
    text: str, source: str, place: str, included: Mapping[str, str], generated: Mapping[str, str] | None = None
) -> str:
    """Returns a page with its links as the site needs them.

    Args:
        text: The page as Markdown.
        source: Its path in the repository, such as "docs/how-to/nnunet.md".
        place: Its path in the site, such as "how-to/nnunet.md".
        included: The path in the repository of each page that comes from outside of docs/, by its path in the site.
        generated: The path in the site of each page that is generated, by its title. "The page *Title*" becomes a link.

    Returns:
        The page. Links to what neither the repository nor the site has are kept, so that a strict build refuses them.
    """
    places = {path: there for there, path in included.items()}

    def moved(match: re.Match[str]) -> str:
        mark, words, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        if ":" in target:
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in places:
            there = places[path]
        elif path.startswith("docs/") and not path.startswith("docs/log/") and not (ROOT / path).is_dir():
            there = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return words
        else:
            return match.group(0)
        return f"{mark}[{words}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    def named(match: re.Match[str]) -> str:
        there = (generated or {}).get(match.group(1))
        if there is None:
            return match.group(0)
        return f"page [{match.group(1)}]({posixpath.relpath(there, posixpath.dirname(place) or '.')})"

    parts = FENCE.split(text)
    return "".join(part if index % 2 else NAMED.sub(named, LINK.sub(moved, part)) for index, part in enumerate(parts))
