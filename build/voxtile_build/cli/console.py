"""What the commands print. Results go to standard output, warnings and errors to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from voxtile_build.progress import listening

if TYPE_CHECKING:
    from voxtile_build.build import Published


class Steps:
    """The steps of a build: on a terminal a line for each with its seconds, and a spinner; in a pipe nothing."""

    def __init__(self, name: str) -> None:
        self.console = Console(stderr=True)
        self.name = name

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        started = time.perf_counter()
        line = f"{self.name}: {what}"
        with self.console.status(line) as shown, listening(lambda share: shown.update(f"{line}: {share:.0%}")):
            yield
        self.console.print(f"{self.name}: {what:32} {time.perf_counter() - started:6.1f} s", highlight=False)


def announce(published: Published) -> None:
    """What was published, and its warnings; on a terminal also what each graph pass did."""
    name = published.card.name
    for line in published.graph_lines:
        say(f"{name}: {line}")
    warn(published.warnings)
    typer.echo(f"{name}: published {', '.join(published.entries)}; {name} is {published.card.engine}")
    for engine, error in published.refused.items():
        typer.echo(f"voxtile-build: {name} was published without {engine}: {error}", err=True)


def exit_code(published: Iterable[Published]) -> int:
    """0, or the code of the first engine that was refused: what was asked for is not all there."""
    codes = [error.exit_code for one in published for error in one.refused.values()]
    return codes[0] if codes else 0


def warn(warnings: Iterable[str]) -> None:
    """A line for each warning."""
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def say(text: str) -> None:
    """A line for people: printed on a terminal only."""
    if sys.stdout.isatty():
        typer.echo(text)
