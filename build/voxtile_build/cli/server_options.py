"""How commands of a build reach servers: the client's options, where no server is asked unless one is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from voxtile.cli.options import ServerOptions
from voxtile.errors import InputError
from voxtile.triton.connection import ConnectionConfig
from voxtile_build.errors import RepositoryError


@dataclass(frozen=True)
class _Reached(ServerOptions):
    """The client's options; a fault in them is one of the build's errors."""

    def connection(self, **changes: Any) -> ConnectionConfig:
        """See `ServerOptions.connection`; raises RepositoryError in place of InputError."""
        try:
            return super().connection(**changes)
        except InputError as error:
            raise RepositoryError(str(error)) from None


@dataclass(frozen=True)
class Servers(_Reached):
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
class Measured(_Reached):
    """The servers whose engines are measured; without one, the files are."""

    url: Annotated[
        list[str],
        typer.Option(
            "--url",
            metavar="HOST:PORT",
            help="gRPC service of the Triton that serves the repository. Repeat it for several servers.",
        ),
    ] = field(default_factory=list)
