"""The README says only what is there: verbs and paths. Its commands are tested with those of all pages (test_docs)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def verbs(page: str) -> set[str]:
    return set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", (ROOT / page).read_text(encoding="utf-8")))


def links() -> list[tuple[str, str]]:
    """Each page's links to files of the repository."""
    link = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
    return [(page, target) for page in PAGES for target in link.findall((ROOT / page).read_text(encoding="utf-8"))]


def test_readme_names_every_make_verb() -> None:
    assert verbs("README.md") == targets()


@pytest.mark.parametrize("page", PAGES)
def test_every_make_verb_exists(page: str) -> None:
    assert verbs(page) <= targets()


@pytest.mark.parametrize(("page", "target"), links())
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    assert (ROOT / page).parent.joinpath(target).exists()
