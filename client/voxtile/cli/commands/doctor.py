"""`voxtile doctor`: problems, found before a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, write_out
from voxtile.cli.doctor import examine
from voxtile.cli.printable import printable
from voxtile.doctor.finding import SCHEMA_VERSION, Finding, exit_code
from voxtile.doctor.releases import EMBEDDED, Release, release_named
from voxtile.errors import InputError

PORT = 8001
"""Where a server listens for gRPC unless it is told otherwise."""


@dataclass(frozen=True)
class RepositoryOptions:
    """What is to serve a repository."""

    release: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="RELEASE",
            help="Of a repository: the Triton that is to serve it, `embedded` (voxtile-server, the default) or the "
            "number of NVIDIA's container, such as 26.07.",
        ),
    ] = None
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Another machine than this one is to serve it; this one is left out.")
    ] = False
    ports: Annotated[
        list[int],
        typer.Option("--port", min=0, max=65535, help=f"A port that the server shall have; by default {PORT}."),
    ] = field(default_factory=list)
    server_options: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Options that tritonserver gets, as one text, to see what they leave open."),
    ] = None
    engines: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that voxtile-server gets with its own --engines.")
    ] = None

    @property
    def given(self) -> bool:
        """Whether any is given."""
        return self != RepositoryOptions()


def doctor(
    context: typer.Context,
    server: options.ServerOptions,
    repository: RepositoryOptions,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH...]", help="Model repositories, or, with --model, a scan that is to be segmented."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's public name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, for programs.")] = False,
) -> None:
    """Diagnose problems before a run: model repositories, or servers with their models, and a scan.

    Exit code 0: all is well; 1: something costs time, safety or proof; 2: something would stop a server or a
    segmentation.
    """
    with errors_for_the_user():
        source = context.get_parameter_source("url")
        asked = source is not None and source.name == "COMMANDLINE"
        folders, scans = _sorted_out(paths or [], model)
        if folders and not asked and (model is not None or scans):
            raise InputError(f"--model: expected --url too, found a repository ({folders[0]}), which is examined whole")
        found: list[Finding] = []
        release = _release(repository, folders)
        if folders:
            found += _told(_lint(folders, repository, release), as_json)
        if asked or not folders:
            found += _told(examine(server.url, model, scans, server.connection()), as_json)
        if as_json:
            write_out(_as_json(found, release if folders else None))
    raise typer.Exit(exit_code(found))


def _told(findings: Iterator[Finding], as_json: bool) -> list[Finding]:
    """The findings; each is told as soon as it is there, unless all are told as JSON."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            write_out(f"{finding.line[:4]}  {printable(finding.line[4:])}\n")
    return found


def _as_json(found: Sequence[Finding], release: Release | None) -> str:
    content = {
        "schema_version": SCHEMA_VERSION,
        "release": None if release is None else release.name,
        "exit_code": exit_code(found),
        "findings": [finding.as_json() for finding in found],
    }
    return json.dumps(content, indent=2) + "\n"


def _sorted_out(paths: Sequence[Path], model: str | None) -> tuple[list[Path], list[Path]]:
    """Repositories and scans. A folder may be either, such as one of DICOM files."""
    from voxtile.doctor.lint import is_repository

    folders = [path for path in paths if not path.is_file() and (model is None or is_repository(path))]
    return folders, [path for path in paths if path not in folders]


def _release(given: RepositoryOptions, folders: Sequence[Path]) -> Release:
    if given.given and not folders:
        raise InputError(
            "--for, --elsewhere, --port, --server-options, --engines: expected a model repository with them, found none"
        )
    return release_named(given.release or EMBEDDED)


def _lint(folders: Sequence[Path], given: RepositoryOptions, release: Release) -> Iterator[Finding]:
    from voxtile.doctor.lint import Server, lint
    from voxtile.doctor.machine import Machine

    if given.engines is not None and not given.engines.is_dir():
        raise InputError(f"--engines: expected a folder of packages, found {given.engines}")
    machine = None if given.elsewhere else Machine.here(given.ports or [PORT])
    return lint(folders, Server(release, machine, given.server_options, given.engines))
