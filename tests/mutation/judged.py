"""Reads `equivalents.toml`: mutants that survive because they change nothing that anybody could notice.

A mutant is known by its function and by the lines that it takes away and puts in place, not by a number, so that a
judgement holds until these very lines change.

One kind is judged here: `strict=True` of a zip that is taken away. It asserts that lengths agree which agree by
construction, so that right code never shows whether it is there; where a test can, the mutant does not survive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tomllib

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")

STRICT = re.compile(r",\s*(strict=(True|False|None))?(?=\))")


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


def is_judged(change: Change | None, judgements: dict[Change, str]) -> bool:
    """Returns whether a survivor's change is one of `judgements`, or only drops `strict=True`."""
    return change is not None and (change in judgements or _only_drops_strict(change))


def _only_drops_strict(change: Change) -> bool:
    return "strict=True" in change.was and STRICT.sub("", change.was) == STRICT.sub("", change.becomes)
