"""Reads the configuration of a MONAI bundle without running any of it: literals and references, nothing else.

In a bundle, a text that begins with `$` is Python. It is refused where its value is needed, except for those forms
whose value follows from their text (see `folding`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.expressions.folding import fold
from voxtile_build.importers.bundle.expressions.functions import NotFoldable

REFERENCE = re.compile(r"[@%](\w+(?:(?:::|#)\w+)*)")
"""A reference that is the whole value. `%` copies what it names, which gives the same here."""
RELATIVE = re.compile(r"(?:@|%)(?:::|#)+")
DISABLED = "_disabled_"
ROOT = "bundle_root"
"""The id under which a bundle finds its own folder."""
NAMES = {"json": ("json",), "yaml": ("yaml", "yml")}
MOST_VALUES = 1_000_000
DEEPEST = 32
"""The longest chain of references; a longer one is taken for a circle."""
SHOWN = 120
"""Letters of an expression that an error shows."""


class Config:
    """One configuration file. Its values are found by ids, such as `inferer::roi_size`."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where = content, where

    def get(self, key: str, default: Any = None) -> Any:
        """The value with the id `key`, with all references resolved; `default` where there is none.

        Raises:
            SourceError: the value contains Python code, or a reference that leads nowhere or in a circle.
        """
        found, value = self._find(key)
        return self._plain(value, key, 0) if found else default

    def raw(self, key: str) -> Any:
        """The value with the id `key`, or what it refers to; references inside are left. None without such an id."""
        found, value = self._find(key)
        return self.followed(value, key) if found else None

    def followed(self, value: Any, where: str) -> Any:
        """What `value` refers to, if it is a reference; references inside are left."""
        for _ in range(DEEPEST):
            target = self._target(value)
            if target is None:
                return value
            value = self._referred(target, where)
        raise SourceError(f"{self.where}: {where}: references form a circle")

    def plain(self, value: Any, where: str) -> Any:
        """`value` with all references resolved; raises as `get` does."""
        return self._plain(value, where, 0)

    def _plain(self, value: Any, where: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise SourceError(f"{self.where}: {where}: references form a circle")
        if isinstance(value, Mapping):
            return {key: self._plain(part, f"{where}::{key}", depth + 1) for key, part in value.items()}
        if isinstance(value, list):
            return [self._plain(part, f"{where}::{index}", depth + 1) for index, part in enumerate(value)]
        target = self._target(value)
        if target is None and isinstance(value, str) and value[:1] in "@%" and value:
            raise SourceError(
                f"{self.where}: {where}: expected a reference such as @id::part, found {value!r}, which may lead "
                "to another file; write its value in its place"
            )
        if target is not None:
            return self._plain(self._referred(target, where), target, depth + 1)
        return self._folded(value, where, depth) if isinstance(value, str) and value.startswith("$") else value

    def _folded(self, text: str, where: str, depth: int) -> Any:
        """`$torch.float32`, `$(1, 2)` and `$@folder + '/a'` are other ways to write a value; other code is refused."""
        try:
            return fold(text[1:], lambda key: self._plain(self._referred(key, where), key, depth + 1))
        except NotFoldable:
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            raise SourceError(
                f"{self.where}: {where}: expected a plain value or a reference, found the Python expression {shown!r}, "
                f"which is not run; give its value by --set {where}=VALUE"
            ) from None

    def parts(self, value: Any, where: str) -> Any:
        """`value`, a list that may be joined by Python such as `$@first + @last`; references inside are left."""
        value = self.followed(value, where)
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        try:
            return fold(value[1:], self.raw)
        except NotFoldable:
            return value

    def _target(self, value: Any) -> str | None:
        """The id that `@a::b`, `%a::b` or `$@a::b` refers to."""
        if not isinstance(value, str):
            return None
        match = REFERENCE.fullmatch(value.removeprefix("$").strip())
        return match[1].replace("#", "::") if match else None

    def _referred(self, key: str, where: str) -> Any:
        found, value = self._find(key)
        if not found:
            raise SourceError(f"{self.where}: {where}: refers to {key!r}, which is not there")
        return value

    def _find(self, key: str) -> tuple[bool, Any]:
        value: Any = self.content
        for step in key.split("::"):
            value = self.followed(value, key) if isinstance(value, str) else value
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                return False, None
        return True, value


def read_config(folder: Path, name: str) -> Config:
    """The configuration in configs/NAME.json, .yaml or .yml of a bundle; `bundle_root` in it is `folder`.

    Raises:
        SourceError: there is no such file, several, or a damaged one.
    """
    endings = [ending for group in NAMES.values() for ending in group]
    found = [path for ending in endings if (path := folder / "configs" / f"{name}.{ending}").is_file()]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise SourceError(
            f"{folder}: expected one file configs/{name}.json or .yaml, as in a MONAI bundle, found {listed}"
        )
    try:
        return Config(_absolute({**_read(found[0]), ROOT: str(folder)}, ""), str(found[0]))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{found[0]}: {error}") from None


def _absolute(value: Any, key: str) -> Any:
    """`value` with references that start from their own place, such as `@::channels`, written in full."""
    if isinstance(value, Mapping):
        return {name: _absolute(part, f"{key}::{name}" if key else str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_absolute(part, f"{key}::{index}") for index, part in enumerate(value)]
    if isinstance(value, str) and RELATIVE.search(value) and value[:1] in "@%$":
        return ConfigParser.resolve_relative_ids(key, value.replace("#", "::"))
    return value


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        _refuse_bombs(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, Mapping):
        raise SourceError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def _refuse_bombs(content: Any) -> None:
    """YAML may refer to its own parts: a few lines unfold to billions of values, or to themselves."""
    left, waiting = MOST_VALUES, [content]
    while waiting:
        left -= 1
        if left < 0:
            raise ValueError(f"expected at most {MOST_VALUES:,} values, found parts that refer to each other for more")
        value = waiting.pop()
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
