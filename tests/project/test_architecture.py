"""The contracts of .importlinter name every engine and every backend that there is."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("contract", "folder"),
    [
        ("engines-apart", "build/voxtile_build/engines"),
        ("backends-apart", "server/voxtile_server/backends"),
    ],
)
def test_every_engine_is_kept_apart_from_the_others(contract: str, folder: str) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    listed = {name.rpartition(".")[2] for name in parser[f"importlinter:contract:{contract}"]["modules"].split()}
    assert listed == {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
