"""Reads the transforms of a bundle as steps whose arguments are all accounted for. Knows no transform."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import DEEPEST, DISABLED, Config
from voxtile_build.importers.bundle.refusals import Refusals
from voxtile_build.importers.bundle.targets import TARGET, TRANSFORMS, monai_name

HARMLESS = {"allow_missing_keys": (False, True), "lazy": (False, None)}
REQUIRED = object()
LARGEST = sys.float_info.max
SPECIAL = re.compile(r"_\w+_")
"""Keys such as _desc_, which are no arguments."""
COMPOSE_NAME = "Compose"
COMPOSE = {"map_items": (True, False), "unpack_items": (False,), "log_stats": (False,), "lazy": (False, None)}
"""Arguments of Compose beside its transforms, and the values that change no result."""


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

    @property
    def place(self) -> str:
        """Where the step stands, for errors."""
        return f"{self.config.where}: {self.where} ({self.given_name})"

    def value(self, key: str, default: Any = None) -> Any:
        """The argument `key` as a plain value; `default` where it is not given.

        Raises:
            SourceError: it is Python that is not run.
        """
        return self.config.plain(self.given[key], f"{self.where}::{key}") if key in self.given else default

    def text(self, key: str) -> str | None:
        """The argument `key` as it is written, such as a function; None where it is no text."""
        written = self.config.followed(self.given.get(key), f"{self.where}::{key}")
        return written if isinstance(written, str) else None

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

    def keys(self, expected: str) -> tuple[str, ...]:
        """The keys that the step concerns; `expected` where it names none.

        Raises:
            SourceError: they are not texts, or `expected` is among them and not the first one. Arguments that are lists
                have a value for each key, and the first is read.
        """
        given = self.config.plain(self.given.get("keys", expected), f"{self.where}::keys")
        keys = given if isinstance(given, list) else [given]
        if not keys or not all(isinstance(key, str) and key for key in keys):
            raise self.refusal(f"keys: expected a name or a list of names, found {given!r}")
        if expected in keys[1:]:
            raise self.refusal(f"expected {expected!r} as the first of its keys, found {given!r}")
        return tuple(keys)

    def number(self, key: str, value: Any) -> float:
        """`value` of the argument `key` as a number.

        Raises:
            SourceError: it is no number, or not finite.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise self.refusal(f"expected a number for {key}, found {value!r}")
        return float(value)

    def refusal(self, reason: str) -> SourceError:
        """An error that names this step."""
        return SourceError(f"{self.place}: cannot be translated: {reason}")


def first(value: Any) -> Any:
    """The value for the first key, where a list has one for each."""
    return value[0] if isinstance(value, list) and value else value


def steps_of(config: Config, key: str, refusals: Refusals) -> tuple[Step, ...]:
    """The transforms of the Compose with the id `key`, without disabled ones; none if there is no such id.

    Args:
        config: the configuration.
        key: the id.
        refusals: gets the error of each transform that is not one of MONAI's.

    Raises:
        SourceError: it is neither Compose nor a list of transforms.
    """
    chain = config.raw(key)
    return () if chain is None else tuple(_steps(config, key, chain, refusals, 0))


def _steps(config: Config, key: str, chain: Any, refusals: Refusals, depth: int) -> Iterator[Step]:
    """The transforms of a chain, with those of chains inside it."""
    if isinstance(chain, Mapping):
        _check_compose(config, key, chain)
        key, chain = f"{key}::transforms", chain.get("transforms")
    chain = config.parts(chain, key)
    if not isinstance(chain, list):
        raise SourceError(f"{config.where}: {key}: expected a list of transforms, found {chain!r}")
    if depth > DEEPEST:
        raise SourceError(f"{config.where}: {key}: expected at most {DEEPEST} chains inside each other")
    for index, part in enumerate(chain):
        with refusals.collect():
            where, part = f"{key}::{index}", config.followed(part, key)
            if _is_disabled(config, where, part):
                continue
            if isinstance(part, Mapping) and str(part.get(TARGET)).rpartition(".")[2] == COMPOSE_NAME:
                yield from _steps(config, where, part, refusals, depth + 1)
            else:
                yield _step(config, where, part)


def _step(config: Config, where: str, part: Any) -> Step:
    if not isinstance(part, Mapping) or not part.get(TARGET):
        raise SourceError(f"{config.where}: {where}: expected a transform with {TARGET}, found {part!r}")
    given = {key: value for key, value in part.items() if not SPECIAL.fullmatch(key)}
    name = monai_name(part, TRANSFORMS, f"{config.where}: {where}")
    return Step(base_name(name), name, where, given, config)


def _check_compose(config: Config, key: str, chain: Mapping[str, Any]) -> None:
    name = monai_name(chain, TRANSFORMS, f"{config.where}: {key}") if TARGET in chain else "no _target_"
    if name != COMPOSE_NAME:
        raise SourceError(f"{config.where}: {key}: expected Compose, found {name}")
    given = {part: value for part, value in chain.items() if part not in (TARGET, "transforms")}
    step = Step(name, name, key, {part: value for part, value in given.items() if not SPECIAL.fullmatch(part)}, config)
    step.require(step.arguments({part: values[0] for part, values in COMPOSE.items()}), COMPOSE)


def base_name(name: str) -> str:
    """The name of a transform without its dictionary ending: `Spacing` for `Spacingd`, `SpacingD` and `SpacingDict`."""
    return re.sub(r"(d|D|Dict)$", "", name)


def _is_disabled(config: Config, where: str, part: Any) -> bool:
    value = config.plain(part.get(DISABLED, False), f"{where}::{DISABLED}") if isinstance(part, Mapping) else False
    return str(value).strip().lower() == "true"
