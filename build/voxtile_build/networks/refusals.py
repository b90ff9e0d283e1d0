"""Puts into one line why a constructor refuses its arguments, and names the argument. Knows no network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from voxtile.errors import shortened

NO_OPTION = re.compile(r"(?:'(?P<one>[^']*)' is not a valid value|Unsupported option '(?P<other>[^']*)')")
OPTIONS = re.compile(r"Available options are [{\[(](.*?)[}\])]", re.DOTALL)
"""MONAI's words where a name, such as that of an activation, is none of those that it knows."""


def why_refused(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """What the arguments of a network's constructor did wrong: one line that begins with the spec's key.

    Args:
        name: of the network.
        arguments: what the spec gives the constructor.
        error: what the constructor raised.
    """
    found, options = NO_OPTION.search(str(error)), OPTIONS.search(str(error))
    if found is None or options is None:
        said = " ".join(str(error).split()) or type(error).__name__
        return shortened(f"network.args: {name} refuses them: {said}")
    word = found["one"] or found["other"] or ""
    known = sorted(re.findall(r"'([^']+)'", options[1]))
    near = difflib.get_close_matches(word.lower(), [one.lower() for one in known], 1)
    meant = next((f" (did you mean {one!r}?)" for one in known if near and one.lower() == near[0]), "")
    key, written = _place_of(word, arguments)
    return f"network.args{key}: expected one of {', '.join(known)}, found {written!r}{meant}; {name} refuses it"


def _place_of(word: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """The argument that holds `word`, with a dot before it, and how it is written there; MONAI changes its case."""
    found = [(key, text) for key, value in arguments.items() for text in _texts(value)]
    places = [(f".{key}", text) for key, text in found if text.strip().lower() == word.lower()]
    return places[0] if len(places) == 1 else ("", word)


def _texts(value: Any) -> Iterator[str]:
    """The texts in an argument, such as the name of a layer before arguments of its own."""
    if isinstance(value, list | tuple):
        yield from (text for one in value for text in _texts(one))
    elif isinstance(value, Mapping):
        yield from (text for one in value.values() for text in _texts(one))
    elif isinstance(value, str):
        yield value
