"""Shows errors as one line and progress as a bar. Knows nothing of what the commands do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from voxtile.errors import VoxtileError

EXIT_INTERRUPTED = 130
"""As shells expect it of a process that SIGINT ended."""


@contextmanager
def errors_for_the_user() -> Iterator[None]:
    """Turns a VoxtileError into one line and its exit code, and an interruption into exit code 130."""
    try:
        yield
    except VoxtileError as error:
        sys.stderr.write(f"voxtile: {' '.join(str(error).split())}\n")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("voxtile: interrupted; nothing half-written is left\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Shows a progress bar on a terminal's error output; gives None where there is no terminal.

    Gives:
        A function to call as progress(done, total).
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
