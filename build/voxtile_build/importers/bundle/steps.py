"""Reads the transforms of a bundle as steps whose arguments are all accounted for. Knows no transform."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import DISABLED, TARGET, Config, target_of

HARMLESS = {"allow_missing_keys": (False, True), "lazy": (False, None)}
REQUIRED = object()


@dataclass(frozen=True)
class Step:
    """One transform.

    Attributes:
        name: without its dictionary ending, such as `Spacing` of `Spacingd`.
        given_name: with it.
        where: its id.
        given: its arguments as they are written.
        config: the configuration that it stands in.
    """

    name: str
    given_name: str
    where: str
    given: Mapping[str, Any]
    config: Config

    def arguments(self, defaults: Mapping[str, Any], *, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
        """The arguments by name.

        Args:
            defaults: the arguments that are known, with their default values; REQUIRED for none.
            ignored: arguments that change no result.

        Raises:
            SourceError: there is any other argument, which might change the result, or a required one is missing.
        """
        known = {**defaults, **dict.fromkeys(HARMLESS)}
        found = dict(defaults)
        for key, value in self.given.items():
            if key in ignored:
                continue
            plain = self.config.plain(value, f"{self.where}::{key}")
            if key not in known or (key in HARMLESS and plain not in HARMLESS[key]):
                raise self.refusal(f"its argument {key} = {plain!r} has no counterpart")
            if key in defaults:
                found[key] = plain
        missing = [key for key, value in found.items() if value is REQUIRED]
        if missing:
            raise self.refusal(f"it needs {', '.join(missing)}")
        return found

    def require(self, arguments: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse an argument that has another value than those that can be translated.

        Raises:
            SourceError: names the argument.
        """
        for key, values in wanted.items():
            if arguments[key] not in values:
                raise self.refusal(f"expected {key} to be {' or '.join(map(repr, values))}, found {arguments[key]!r}")

    def refusal(self, reason: str) -> SourceError:
        """An error that names this step."""
        return SourceError(f"{self.config.where}: {self.where} ({self.given_name}): cannot be translated: {reason}")


def steps_of(config: Config, key: str) -> tuple[Step, ...]:
    """The transforms of the Compose with the id `key`, without disabled ones; none if there is no such id.

    Raises:
        SourceError: it is neither Compose nor a list of transforms.
    """
    chain = config.raw(key)
    if chain is None:
        return ()
    if isinstance(chain, Mapping):
        if target_of(chain) != "Compose":
            raise SourceError(f"{config.where}: {key}: expected Compose, found {target_of(chain) or 'no _target_'}")
        key, chain = f"{key}::transforms", config.followed(chain.get("transforms"), key)
    if not isinstance(chain, list):
        raise SourceError(f"{config.where}: {key}: expected a list of transforms, found {chain!r}")
    parts = [(f"{key}::{index}", config.followed(part, key)) for index, part in enumerate(chain)]
    return tuple(_step(config, where, part) for where, part in parts if not _is_disabled(config, where, part))


def _step(config: Config, where: str, part: Any) -> Step:
    if not isinstance(part, Mapping) or not part.get(TARGET):
        raise SourceError(f"{config.where}: {where}: expected a transform with {TARGET}, found {part!r}")
    given = {key: value for key, value in part.items() if not re.fullmatch(r"_\w+_", key)}
    return Step(base_name(target_of(part)), target_of(part), where, given, config)


def base_name(name: str) -> str:
    """The name of a transform without its dictionary ending: `Spacing` for `Spacingd`, `SpacingD` and `SpacingDict`."""
    return re.sub(r"(d|D|Dict)$", "", name)


def _is_disabled(config: Config, where: str, part: Any) -> bool:
    value = config.plain(part.get(DISABLED, False), f"{where}::{DISABLED}") if isinstance(part, Mapping) else False
    return str(value).strip().lower() == "true"
