"""Puts values that the user gives by `--set KEY=VALUE` into the configuration of a bundle. Knows no key."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import ROOT, Config

NEAR = 3
"""Keys that an error offers."""
DEEP = 8
"""Steps of a key that are looked at for one that is near."""


def with_values(config: Config, given: Sequence[str]) -> Config:
    """The configuration with other values, as MONAI's own commands take them by `--KEY VALUE`.

    Args:
        config: the configuration.
        given: texts KEY=VALUE. A key is an id such as `inferer::roi_size` or `preprocessing::transforms::3::pixdim`,
            and must be there. A value is JSON; text that is no JSON is taken as it is.

    Raises:
        SourceError: a key is not there, or a text is not KEY=VALUE.
    """
    if not given:
        return config
    changed = Config(copy.deepcopy(dict(config.content)), config.where)
    for text in given:
        key, sign, value = text.partition("=")
        key = key.strip().replace("#", "::")
        if not sign or not key:
            raise SourceError(f"--set {text}: expected KEY=VALUE, such as inferer::roi_size='[96, 96, 96]'")
        if key == ROOT:
            raise SourceError(f"--set {text}: the bundle is the folder that you name; name another folder")
        _put(changed, key, _value(text, value))
    return changed


def _value(text: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        if value.strip()[:1] in ("[", "{", '"'):
            raise SourceError(f"--set {text}: the value is no JSON: {error}") from None
        return value
    except RecursionError:
        raise SourceError(f"--set {key_of(text)}: the value is nested too deeply") from None


def key_of(text: str) -> str:
    """The key of KEY=VALUE."""
    return text.partition("=")[0].strip()


def _put(config: Config, key: str, value: Any) -> None:
    *path, last = key.split("::")
    part: Any = config.content
    for step in path:
        part = _inside(config, part, step, key)
        part = config.followed(part, key)
    _inside(config, part, last, key)  # it must be there
    part[int(last) if isinstance(part, list) else last] = value


def _inside(config: Config, part: Any, step: str, key: str) -> Any:
    if isinstance(part, Mapping) and step in part:
        return part[step]
    if isinstance(part, list) and step.isdecimal() and int(step) < len(part):
        return part[int(step)]
    known = list(_keys(config.content, "", DEEP))
    near = difflib.get_close_matches(key, known, NEAR)
    near += [name for name in known if name.rpartition("::")[2] == key.rpartition("::")[2] and name not in near][:NEAR]
    hint = f"; did you mean {', '.join(near[:NEAR])}?" if near else ""
    raise SourceError(f"--set {key}: {config.where} has no such key{hint}")


def _keys(value: Any, key: str, deep: int) -> Iterator[str]:
    parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        place = f"{key}::{name}" if key else str(name)
        yield place
        if deep:
            yield from _keys(part, place, deep - 1)
