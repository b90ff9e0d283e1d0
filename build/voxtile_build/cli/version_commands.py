"""`promote`, `rollback` and `remove`: which versions of a model there are, and which one its public name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxtile_build.cli.console import echo
from voxtile_build.cli.options import Name, Repository
from voxtile_build.cli.server_options import Servers

if TYPE_CHECKING:
    from voxtile_build.promoting import Move

Number = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of a version that is built.")]
BY_THEMSELVES = (
    "servers: one in the mode poll, or that loads on demand, sees it by itself; one in the mode explicit is told by "
    "--url; one in the mode none must be started again"
)


def promote(name: Name, version: Number, repository: Repository, servers: Servers) -> None:
    """Let a public name stand for another version of its model; the old one stays."""
    from voxtile_build.promoting import promote as move

    _check(name, repository, servers)
    _tell(name, move(name, version, repository), repository, servers)


def rollback(name: Name, repository: Repository, servers: Servers) -> None:
    """Let a public name stand for the version that it stood for before."""
    from voxtile_build.promoting import rollback as move

    _check(name, repository, servers)
    _tell(name, move(name, repository), repository, servers)


def remove(name: Name, version: Number, repository: Repository, servers: Servers) -> None:
    """Remove a version of a model with its engines and certificates; never the one that the name stands for."""
    from voxtile_build.loading import unload_at
    from voxtile_build.removing import remove as take_away

    _check(name, repository, servers)
    gone = take_away(name, version, repository)
    for entry in gone:
        echo(f"removed {repository / entry}")
    for url in servers.url:
        unloaded = unload_at(url, gone, servers.connection())
        echo(f"{url}: unloaded {', '.join(unloaded) or 'nothing: it has nothing of it, or loads on demand'}")
    if not servers.url:
        echo(BY_THEMSELVES)


def _check(name: str, repository: Path, servers: Servers) -> None:
    """Refuse a name that is not there, and servers that do not answer, before anything changes."""
    from voxtile_build.loading import check_server
    from voxtile_build.repository.asked import require_model

    require_model(name, repository)
    connection = servers.connection()
    for url in servers.url:
        check_server(url, connection)


def _tell(name: str, move: Move, repository: Path, servers: Servers) -> None:
    from voxtile_build.loading import load_at

    before = "already" if move.before == move.now else f"before: {f'version {move.before}' if move.before else 'none'}"
    echo(f"{name} is version {move.now}, by {move.card.engine}; {before}; in {repository}")
    for url in servers.url:
        for entry in (loaded := load_at(url, name, repository, servers.connection())):
            echo(f"{url}: loaded {entry}")
        if not loaded:
            echo(f"{url}: loads models on demand, and sees by itself what {name} is now")
    if not servers.url and move.before != move.now:
        echo(BY_THEMSELVES)
