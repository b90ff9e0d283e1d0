"""Writes the page about one mask: one file, which any browser shows without a network.

Knows nothing of what is on it.
"""

from __future__ import annotations

from pathlib import Path

from voxtile.card import Card
from voxtile.outputs.base import Output, Result
from voxtile.outputs.page.content import page_of
from voxtile.outputs.page.scripts import check_niivue
from voxtile.outputs.report import write_text


def _write(result: Result, path: Path) -> None:
    write_text(page_of(result), path)


def _check_model(_: Card) -> None:
    check_niivue()


PAGE = Output("page", ".html", "Write a page that shows scan, mask and passport in any browser.", _write, _check_model)
