"""`voxtile manifest`: a table of the cases of a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from voxtile.batch.cases import left_out_in_words
from voxtile.batch.cohort.making import MadeManifest, manifest_of, write_manifest
from voxtile.batch.cohort.remote_making import manifest_at
from voxtile.batch.cohort.remote_scans import remote
from voxtile.batch.summary import EXIT_SOME_FAILED
from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, say, tell
from voxtile.errors import InputError, OutputError
from voxtile.io.atomic import check_writable
from voxtile.places.address import Address, path_or_address
from voxtile.triton.endpoint import Endpoint

ENDINGS = (".csv", ".txt")


def manifest(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder of scans, at any depth; or its address: s3://, gs://.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="CASES.csv", help="The table to write, on this machine.")
    ],
    server: options.ServerOptions,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Ask the server for the channels of this model.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME…", help="The model's channels in its order; by default as the names tell."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table.")] = False,
) -> None:
    """Write a table of the cases of a folder for voxtile batch --manifest: nnU-Net, BIDS, or a file a case.

    Exit code 0: every scan is in it; 1: some scans were left out, each is named.
    """
    with errors_for_the_user():
        table = path_or_address(output)
        if not isinstance(table, Path):
            raise OutputError(
                f"{output}: expected a file of this machine, found an address; write the table here first"
            )
        _check_output(table, overwrite)
        made = _made(path_or_address(folder), _channels(server, model, channels), table)
        for line in (*made.faults, *left_out_in_words(made.left_out)):
            say(line)
        tell(f"{len(made.cases)} cases; see {output}")
    raise typer.Exit(_exit_code(made))


def _made(folder: Path | Address, channels: Sequence[str], output: Path) -> MadeManifest:
    if isinstance(folder, Path):
        made = manifest_of(folder, channels)
        write_manifest(made, output)
        return made
    with remote() as elsewhere:
        made = manifest_at(folder, channels, elsewhere)
        write_manifest(made, output, elsewhere)
    return made


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix.lower() not in ENDINGS:
        raise OutputError(f"{output}: expected a name that ends in {ENDINGS[0]}; choose another")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{output}: expected no file, found one; choose another name, or say --overwrite")
    check_writable(output)


def _channels(server: options.ServerOptions, model: str | None, channels: str | None) -> list[str]:
    """The names of the channels; none where nobody says them."""
    if model is not None and channels is not None:
        raise InputError("expected --model or --channels, found both; the model says its channels")
    if model is not None:
        with contextlib.closing(Endpoint(server.url[0], server.connection(shared_memory=False))) as endpoint:
            return list(endpoint.loaded_model(model).card.input_channels)
    names = [] if channels is None else [name.strip() for name in channels.split(",")]
    if len({name.casefold() for name in names}) < len(names) or "" in names:
        raise InputError(f"expected different names for --channels, separated by commas, found {channels!r}")
    return names


def _exit_code(made: MadeManifest) -> int:
    left_out = bool(made.faults) or any(one.may_be_scan for one in made.left_out)
    return EXIT_SOME_FAILED if left_out else 0
