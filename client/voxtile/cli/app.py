"""Assembles the command `voxtile` from its subcommands.

Each subcommand translates arguments into library calls and errors into exit codes, and does nothing else.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from voxtile.cli.allocator import limit_malloc_arenas
from voxtile.cli.commands.batch import batch
from voxtile.cli.commands.collect import collect
from voxtile.cli.commands.dicom import dicom
from voxtile.cli.commands.doctor import doctor
from voxtile.cli.commands.load_test import load_test
from voxtile.cli.commands.manifest import manifest
from voxtile.cli.commands.models import models
from voxtile.cli.commands.prepare import prepare
from voxtile.cli.commands.segment import segment
from voxtile.cli.commands.why import why
from voxtile.cli.console import occupy_standard_streams
from voxtile.cli.local_paths import paths_only
from voxtile.cli.parameters import expand_options
from voxtile.cli.usage import OneLineGroup
from voxtile.version import __version__

app = typer.Typer(
    name="voxtile",
    cls=OneLineGroup,
    help="Segments 3D scans with models on a Triton server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (segment, dicom, batch, manifest, collect, prepare, load_test, models, doctor, why):
    app.command()(paths_only(expand_options(command)))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"voxtile {__version__}")
        raise typer.Exit


@app.callback()
def _voxtile(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Segments 3D scans with models on a Triton server."""


def run() -> None:
    """Runs the command as a process of its own."""
    occupy_standard_streams()
    limit_malloc_arenas()
    logging.basicConfig(level=logging.WARNING, format="voxtile: %(message)s")
    app(prog_name="voxtile")
