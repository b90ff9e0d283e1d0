"""Refuses addresses where a command takes paths. Knows no command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxtile.errors import InputError
from voxtile.places.address import check_is_path
from voxtile_build.errors import SourceError


def paths_only(command: Callable[..., Any] | None) -> Callable[..., Any]:
    """Makes a command raise SourceError where one of its arguments that are paths is an address."""
    assert command is not None, "a command that is registered has a function"

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        for value in values.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Path):
                    _check(one)
        return command(**values)

    return call


def _check(path: Path) -> None:
    try:
        check_is_path(path)
    except InputError as error:
        raise SourceError(str(error)) from None
