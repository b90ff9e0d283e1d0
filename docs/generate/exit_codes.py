"""The page of exit codes, from the errors of each program and from what its commands say of themselves."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import voxtile.errors
import voxtile_build.errors
from docs.generate.markdown import code, one_line, table
from docs.generate.programs import APPS, PROGRAMS, commands_of

INTRODUCTION = """\
# Exit codes

Every program writes one line on standard error when it does not succeed. The line says what was expected, what was
found, where, and what to do. The table names the error that ends a command, as it is called in Python."""
ERRORS: dict[str, type[Any]] = {
    "voxtile": voxtile.errors.VoxtileError,
    "voxtile-build": voxtile_build.errors.BuildError,
}
COMMON = (
    (0, "The command did what it was asked for"),
    (129, "Ended by SIGHUP, as when its terminal is closed; nothing half-written is left"),
    (130, "Interrupted; nothing half-written is left"),
    (143, "Ended by SIGTERM, as by a scheduler's time limit; nothing half-written is left"),
)
SAID = re.compile(r"Exit codes?:?\s+(.*?)(?:\.\s|\.?\Z)", re.DOTALL)
ONE = re.compile(r"(\d+):? ([^;,]+(?:, (?!\d)[^;,]+)*)")


def page() -> str:
    """Returns the page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(_program(program) for program in PROGRAMS)]) + "\n"


def codes_of(program: str) -> dict[int, list[str]]:
    """Returns the meanings of each exit code of a program."""
    found: dict[int, list[str]] = defaultdict(list)
    if program in APPS:
        for number, meaning in COMMON:
            found[number].append(one_line(meaning))
        found[2].append("The command line has an error")
        for error in _tree(ERRORS[program]):
            found[error.exit_code].append(f"{code(error.__name__)}: {one_line(error.__doc__ or '')}")
    for command in commands_of(program):
        for text in SAID.findall(command.what):
            for number, meaning in ONE.findall(" ".join(text.split())):
                place = f"{code(command.name)}: " if program in APPS else ""
                found[int(number)].append(f"{place}{meaning.strip()}" if place else one_line(meaning))
    return dict(sorted(found.items()))


def _program(program: str) -> str:
    rows = [(str(number), "<br>".join(meanings)) for number, meanings in codes_of(program).items()]
    return f"## {program}\n\n{table(('code', 'meaning'), rows)}"


def _tree(error: type[Any]) -> Iterator[type[Any]]:
    """Yields the errors below `error` that its module defines, depth first."""
    for below in error.__subclasses__():
        if below.__module__ == error.__module__:
            yield below
            yield from _tree(below)
