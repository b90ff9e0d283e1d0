"""Refuses addresses where a command takes paths. Knows no command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxtile.cli.console import errors_for_the_user
from voxtile.places.address import check_is_path


def paths_only(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command end with one line where one of its arguments that are paths is an address."""

    @functools.wraps(command)
    def call(**values: Any) -> None:
        with errors_for_the_user():
            for value in values.values():
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, Path):
                        check_is_path(one)
        command(**values)

    return call
