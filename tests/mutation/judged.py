"""Reads `equivalents.toml`: mutants that survive because they change nothing that anybody could notice.

A mutant is known by its function and by the lines that it takes away and puts in place, not by a number, so that a
judgement holds until these very lines change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tomllib

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")


@dataclass(frozen=True)
class Change:
    """What a mutant changes.

    Attributes:
        where: the dotted name of the function, or of the module for what stands outside functions.
        was: the lines taken away, each stripped, joined by line ends.
        becomes: the lines put in their place.
    """

    where: str
    was: str
    becomes: str


def read_judgements() -> dict[Change, str]:
    """Returns why each equivalent mutant is one."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8")).get("equivalent", [])
    return {Change(one["where"], one["was"].strip(), one["becomes"].strip()): one["why"] for one in listed}
