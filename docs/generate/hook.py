"""What MkDocs calls: adds the generated and the included pages, lists the decisions, moves links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("client", "build", "server"))]

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from docs.generate import decisions  # noqa: E402
from docs.generate.links import relocate  # noqa: E402
from docs.generate.pages import GENERATED, INCLUDED  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Writes the decisions into the navigation, where mkdocs.yml has their index."""
    _insert_decisions(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not stand in docs/."""
    for place, make in GENERATED.items():
        files.append(File.generated(config, place, content=make()))
    for place, source in INCLUDED.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Moves the links of a page from the repository's folders to the site's."""
    place = page.file.src_uri
    return relocate(markdown, INCLUDED.get(place, f"docs/{place}"), place, INCLUDED)


def _insert_decisions(nav: list[Any]) -> None:
    if decisions.INDEX in nav:
        nav += [{decisions.title(file): f"decisions/{file.name}"} for file in decisions.files()]
        return
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                _insert_decisions(value)
