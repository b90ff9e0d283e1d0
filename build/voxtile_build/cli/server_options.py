"""How commands of a build reach servers: the client's options, where no server is asked unless one is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from voxtile.cli.options import ServerOptions


@dataclass(frozen=True)
class Servers(ServerOptions):
    """The servers of a repository that are told what has changed; none unless `--url` names one."""

    url: Annotated[
        list[str],
        typer.Option(
            "--url",
            metavar="HOST:PORT",
            help="gRPC service of a Triton on this repository in the mode explicit; it is told what has changed. "
            "Repeat it for several servers.",
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Measured(ServerOptions):
    """The servers whose engines are measured; without one, the files are."""

    url: Annotated[
        list[str],
        typer.Option(
            "--url",
            metavar="HOST:PORT",
            help="gRPC service of the Triton that serves the repository. Repeat it for several servers.",
        ),
    ] = field(default_factory=list)
