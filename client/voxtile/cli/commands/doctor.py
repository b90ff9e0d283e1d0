"""`voxtile doctor`: problems, found before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, write_out
from voxtile.cli.doctor import examine
from voxtile.cli.printable import printable


def doctor(
    server: options.ServerOptions,
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="[SCAN...]", help="A scan that is to be segmented.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's public name.")] = None,
) -> None:
    """Diagnose problems before a run: server, models, certificate, shared memory, scan.

    Exit code 0: all is well; 2: something would stop a segmentation.
    """
    healthy = True
    with errors_for_the_user():
        for finding in examine(server.url, model, scans or [], server.connection()):
            healthy &= finding.ok
            write_out(f"{'ok  ' if finding.ok else 'FAIL'}  {printable(f'{finding.what}: {finding.detail}')}\n")
    raise typer.Exit(0 if healthy else 2)
