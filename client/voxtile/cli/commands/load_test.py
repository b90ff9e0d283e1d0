"""`voxtile load-test`: how many scans a service segments in an hour."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, write_out
from voxtile.cli.load_test import run_load_test
from voxtile.options import Options


def load_test(
    scans: options.Scans,
    model: options.Model,
    server: options.ServerOptions,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once.")] = 2,
    count: Annotated[int, typer.Option("--scans", min=1, help="Scans in all.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a service in scans an hour: several clients segment the same scan over and over."""
    with errors_for_the_user():
        chosen = Options(connection=server.connection())
        result = run_load_test(server.url, model, scans, clients=clients, scans=count, options=chosen).model_dump()
        lines = [f"{name.replace('_', ' '):16} {value}" for name, value in result.items()]
        write_out(json.dumps(result, indent=2) + "\n" if as_json else "\n".join(lines) + "\n")
