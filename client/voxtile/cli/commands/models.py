"""`voxtile models`: what the servers offer."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.endpoint import Endpoint

PIPE_WIDTH = 160
"""Columns of a table where there is no terminal."""


def models(
    server: options.ServerOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects, for programs.")] = False,
) -> None:
    """List what the server offers, from the models' cards."""
    with errors_for_the_user():
        listings = _listings(server)
    if as_json:
        sys.stdout.write(json.dumps([listing.as_json() for listing in listings], indent=2) + "\n")
        return
    table = Table(box=None)
    table.add_column("model", no_wrap=True)
    for title in ("what", "channels", "ROI", "spacing mm", "labels", "engine", "certificate"):
        table.add_column(title)
    for listing in listings:
        table.add_row(*listing.row())
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _listings(server: options.ServerOptions) -> list[ModelListing]:
    connection = server.connection(shared_memory=False)
    listings = []
    for url in server.url:
        with contextlib.closing(Endpoint(url, connection)) as endpoint:
            listings += list_models(endpoint)
    return listings
