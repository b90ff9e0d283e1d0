"""What MkDocs calls: adds the generated and the included pages, lists folders in the navigation, moves links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("client", "build", "server"))]

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from docs.generate.folders import pages_of, title_of  # noqa: E402
from docs.generate.links import relocate  # noqa: E402
from docs.generate.pages import GENERATED, INCLUDED, titles  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces each folder in the navigation by its pages; a folder that is not there is left out."""
    config.nav = [_expanded(entry) for entry in config.nav or [] if _is_there(entry)]
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
    return relocate(markdown, INCLUDED.get(place, f"docs/{place}"), place, INCLUDED, titles())


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and value.endswith("/")


def _is_there(entry: Any) -> bool:
    folders = [value for value in entry.values() if _is_folder(value)] if isinstance(entry, dict) else []
    return all(pages_of(folder) for folder in folders)


def _expanded(entry: Any) -> Any:
    if isinstance(entry, str):
        return entry
    return {title: _pages(value) for title, value in entry.items()}


def _pages(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(entry) for entry in value if _is_there(entry)]
    if not _is_folder(value):
        return value
    index = [f"{value}index.md"] if f"{value}index.md" in GENERATED else []
    return [*index, *({title_of(ROOT / "docs" / page): page} for page in pages_of(value))]
