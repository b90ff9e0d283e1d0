"""What may be asked for in a repository on disk, and when an entry is another one than before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voxtile_server.residency.catalogue import Catalogue

CARD = 'parameters { key: "card" value { string_value: "%s" } }'


def entry(repository: Path, name: str, card: str) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CARD % card)
    return repository / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../models/one", "one/", "file", ".voxtile-build.lock", "none", "o\0e"]
)
def test_what_is_no_entry_cannot_be_asked_for(tmp_path: Path, name: str) -> None:
    """Otherwise a model that is in use would make room for an attempt to load it."""
    entry(tmp_path, "one", "a")
    (tmp_path / "file").touch()
    (tmp_path / ".voxtile-build.lock").touch()
    catalogue = Catalogue(tmp_path)
    assert not catalogue.has(name)
    assert catalogue.offer(name) is None
    assert catalogue.has("one")


def test_an_entry_that_takes_the_place_of_another_has_another_stamp(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    assert catalogue.stamp("one") is None
    entry(tmp_path, "one", "a")
    before = catalogue.stamp("one")
    assert before == catalogue.stamp("one") is not None
    entry(tmp_path, "two", "b")
    os.rename(tmp_path / "one", tmp_path / "was")
    os.rename(tmp_path / "two", tmp_path / "one")  # as a promotion swaps them: same size, perhaps the same moment
    assert catalogue.stamp("one") != before
    (offer,) = (one for one in catalogue.offers() if one.name == "one")
    assert offer.card == "b"
