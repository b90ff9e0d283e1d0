"""Tells a wrong command line in one line, and where its options are explained. Knows no command."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from voxtile.cli.printable import printable

EXIT_USAGE = 2
WORDS = (
    (r"\. Did you mean (.*)\?$", r" (did you mean \1?)"),
    (r"Input should be a valid (integer|number)(, .*)?$", "expected a number"),
    (r"Input should be (greater|less)", r"expected a number \1"),
    (r"Input should be ", "expected "),
    (r"Value error, ", ""),
)
"""Beginnings and ends of typer's and pydantic's messages, and ours."""

POSSIBLE = re.compile(r"(\S+) \(Possible options?: ([^)]*)\)")


class OneLineGroup(TyperGroup):
    """Commands whose wrong use ends with one line on standard error, in place of a frame around several."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Runs the command; the arguments are typer's. In standalone mode the process ends with the exit code."""
        run = partial(super().main, args, *rest, **extra)
        if not standalone_mode:
            return run(standalone_mode=False)
        try:
            code = run(standalone_mode=False)
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            if not is_usage_error(error):
                raise
            tell_usage(error, self.name or "voxtile")
            sys.exit(EXIT_USAGE)
        sys.exit(code if isinstance(code, int) else 0)


def is_usage_error(error: Exception) -> bool:
    """Whether typer refuses the command line. Its class comes from click, or from typer's own copy of it."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def tell_usage(error: Any, program: str) -> None:
    """Writes what is wrong with the command line in one line; the help of a command that was given nothing.

    Args:
        error: typer's.
        program: its name, where the error does not know the command.
    """
    context = getattr(error, "ctx", None)
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        context.get_help()  # prints it, or returns it where there is no rich
        return
    said = " ".join(error.format_message().split()).rstrip(".")
    said = POSSIBLE.sub(_nearest, said)
    for theirs, ours in WORDS:
        said = re.sub(theirs, ours, said)
    command = context.command_path if context is not None else program
    typer.echo(printable(f"{command.split(' ')[0]}: {said}; see {command} --help"), err=True)


def _nearest(match: re.Match[str]) -> str:
    """An unknown option with the most similar of those that typer offers."""
    offered = match[2].split(", ")
    near = difflib.get_close_matches(match[1], offered, 1) or offered
    return f"{match[1]} (did you mean {near[0]}?)"
