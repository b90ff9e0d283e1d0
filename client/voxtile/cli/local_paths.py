"""Refuses addresses where a command takes paths. Knows no command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from voxtile.cli.console import errors_for_the_user
from voxtile.places.address import check_paths


def paths_only(
    command: Callable[..., Any], telling: Callable[[], AbstractContextManager[None]] = errors_for_the_user
) -> Callable[..., Any]:
    """Makes a command end where one of its arguments that are paths is an address.

    Args:
        command: the command.
        telling: in which the InputError is raised, to tell it.
    """

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        with telling():
            check_paths(values.values())
        return command(**values)

    return call
