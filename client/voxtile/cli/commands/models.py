"""`voxtile models`: what the servers offer."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, say, write_out
from voxtile.cli.printable import printable
from voxtile.errors import VoxtileError
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.endpoint import Endpoint

PIPE_WIDTH = 190
"""Columns of a table where there is no terminal."""


def models(
    server: options.ServerOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects, for programs.")] = False,
    versions: Annotated[
        bool, typer.Option("--versions", help="List every version that can be asked for, as NAME@VERSION.")
    ] = False,
) -> None:
    """List what the servers offer, from the models' cards.

    A server that does not answer costs the others nothing. Exit code 0: all answered; 2: one did not.
    """
    with errors_for_the_user():
        listings, failed = _listings(server, versions)
        if len(failed) < len(server.url):
            write_out(_as_json(listings) if as_json else _as_table(listings, several=len(server.url) > 1))
    raise typer.Exit(failed[0].exit_code if failed else 0)


def _as_json(listings: Sequence[ModelListing]) -> str:
    return json.dumps([listing.as_json() for listing in listings], indent=2) + "\n"


def _as_table(listings: Sequence[ModelListing], *, several: bool) -> str:
    """A table of the models; of `several` servers, also which one offers each."""
    table = Table(box=None)
    table.add_column("model", no_wrap=True)
    for title in ("version", "what", "channels", "ROI", "spacing mm", "labels", "engine", "certificate"):
        table.add_column(title)
    if several:
        table.add_column("server", no_wrap=True)
    for listing in listings:
        table.add_row(*map(printable, [*listing.row(), *([listing.url] if several else [])]))
    text, is_terminal = io.StringIO(), sys.stdout is not None and sys.stdout.isatty()
    # A name or a title is shown as it is, brackets and colons too.
    console = Console(
        file=text, force_terminal=is_terminal, width=None if is_terminal else PIPE_WIDTH,
        markup=False, emoji=False, highlight=False,
    )  # fmt: skip
    console.print(table)
    return text.getvalue()


def _listings(server: options.ServerOptions, versions: bool) -> tuple[list[ModelListing], list[VoxtileError]]:
    """What the servers offer, and why some of them did not say; each of these is told at once."""
    connection = server.connection(shared_memory=False)
    listings, failed = [], []
    for url in server.url:
        with contextlib.closing(Endpoint(url, connection)) as endpoint:
            try:
                listings += list_models(endpoint, versions=versions)
            except VoxtileError as error:
                say(str(error))
                failed.append(error)
    return listings, failed
