"""Changes a JSON document in one place or a few, as a careless or malicious author would. Knows no format."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    255,
    256,
    65_536,
    2**31,
    2**63,
    10**30,
    -(10**30),
    0.0,
    -0.5,
    1e-300,
    1e300,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "nan",
    "true",
    "null",
    "\x00",
    "a\nb",
    "ü",
    "😀",
    "\ud800",
    "../../etc/passwd",
    "/dev/zero",
    "$__import__('os').system('true')",
    "@network_def",
    "%x",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    [0],
    [[[[[]]]]],
    {"": ""},
    {"0": 0},
    [1, 2],
    [1, 2, 3],
    [1, 2, 3, 4],
    [0.0, 0.0, 0.0],
)
MOST_CHANGES = 3


def changed(document: Any, rng: random.Random) -> Any:
    """Returns a copy of `document` with one to MOST_CHANGES changes."""
    made = copy.deepcopy(document)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        holder = [made]
        places = list(_places(holder))
        where, key = rng.choice(places)
        rng.choice(CHANGES)(where, key, rng, holder[0])
        made = holder[0] if holder else None
    return made


def text_of(document: Any) -> bytes:
    """Returns the document as JSON, with lone surrogates as escapes."""
    return json.dumps(document).encode()


def _places(holder: Any, depth: int = 0) -> Any:
    """Yields every (container, key) of a document, itself in a list of one."""
    if depth > 40:
        return
    keys = range(len(holder)) if isinstance(holder, list) else list(holder)
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (list, dict)):
            yield from _places(holder[key], depth + 1)


def _odd(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    where[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _gone(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    if isinstance(where, dict) or len(where) > 1:
        del where[key]


def _from_elsewhere(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    other, its_key = rng.choice(list(_places([whole])))
    where[key] = copy.deepcopy(other[its_key])


def _renamed(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    if isinstance(where, dict):
        name = rng.choice((key + "_", key.upper(), key[:-1], "", "_target_", "__class__", "0", "file"))
        where[name] = where.pop(key)


def _scaled(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    if isinstance(where[key], (int, float)):
        where[key] = where[key] * rng.choice((-1, 10, 0.1, 1000, 2, 10**12))


def _wrapped(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    where[key] = rng.choice(([where[key]], {"value": where[key]}, str(where[key])))


def _repeated(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    if isinstance(where[key], list):
        where[key] = (where[key] * rng.choice((2, 3, 40)))[:2000]


def _deep(where: Any, key: Any, rng: random.Random, whole: Any) -> None:
    for _ in range(rng.choice((3, 60, 500))):
        where[key] = [where[key]] if rng.random() < 0.5 else {"a": where[key]}


CHANGES: tuple[Callable[[Any, Any, random.Random, Any], None], ...] = (
    _odd,
    _odd,
    _odd,
    _gone,
    _from_elsewhere,
    _renamed,
    _scaled,
    _wrapped,
    _repeated,
    _deep,
)
