"""Which model each scan of a load is for, by shares, and which scan it gets. Knows nothing of models but names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from voxtile.errors import InputError


def shares_of(texts: Sequence[str], option: str) -> dict[str, float]:
    """Reads models with their weights, and returns the share of each; the shares add up to 1.

    Args:
        texts: NAME or NAME=WEIGHT; without a weight it is 1.
        option: what gave them, for the error.

    Raises:
        InputError: no model, one twice, or a weight that is no number above 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.partition("=")
        if not name:
            raise InputError(f"{option}: expected the name of a model, found {text!r}")
        if name in weights:
            raise InputError(f"{option}: expected each model once, found {name!r} twice; give it one share")
        weights[name] = _weight(weight, text, option) if equals else 1.0
    if not weights:
        raise InputError(f"{option}: expected the name of a model, found none")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _weight(weight: str, text: str, option: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{option}: expected NAME or NAME=SHARE with a share above 0, found {text!r}")
    return value


def scans_of(texts: Sequence[str], models: Collection[str], option: str) -> dict[str, list[Path]]:
    """Reads the scans that single models get, and returns the files of each, one a channel, as they are given.

    Args:
        texts: NAME=FILE, several times for a scan of several files.
        models: the names that there are.
        option: what gave them, for the error.

    Raises:
        InputError: no NAME=FILE, or a name that is no model's.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not (name and file):
            raise InputError(f"{option}: expected NAME=FILE, found {text!r}")
        if name not in models:
            raise InputError(f"{option}: expected the name of a --model ({', '.join(models)}), found {name!r}")
        found.setdefault(name, []).append(Path(file))
    return found


def in_turn(shares: Mapping[str, float]) -> Iterator[str]:
    """Yields names without end; after any number of them, none was given more than one too often for its share."""
    credit = dict.fromkeys(shares, 0.0)
    while True:
        for name, share in shares.items():
            credit[name] += share
        chosen = max(credit, key=lambda name: credit[name])
        credit[chosen] -= 1
        yield chosen
