"""`promote` and `rollback`: which version of a model its public name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxtile_build.cli.console import echo
from voxtile_build.cli.options import Name, Repository

if TYPE_CHECKING:
    from voxtile_build.promoting import Move

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="HOST:PORT",
        help="gRPC service of a Triton on this repository in the mode explicit; it is told to load what has changed.",
    ),
]


def promote(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of a version that is built.")],
    repository: Repository,
    url: Url = None,
) -> None:
    """Let a public name stand for another version of its model; the old one stays."""
    from voxtile_build.promoting import promote as move

    _check(url)
    _tell(name, move(name, version, repository), repository, url)


def rollback(name: Name, repository: Repository, url: Url = None) -> None:
    """Let a public name stand for the version that it stood for before."""
    from voxtile_build.promoting import rollback as move

    _check(url)
    _tell(name, move(name, repository), repository, url)


def _check(url: str | None) -> None:
    from voxtile_build.loading import check_server

    if url is not None:
        check_server(url)


def _tell(name: str, move: Move, repository: Path, url: str | None) -> None:
    from voxtile_build.loading import load_at

    before = "already" if move.before == move.now else f"before: {f'version {move.before}' if move.before else 'none'}"
    echo(f"{name} is version {move.now}, by {move.card.engine}; {before}; in {repository}")
    if url is not None:
        for entry in (loaded := load_at(url, name, repository)):
            echo(f"{url}: loaded {entry}")
        if not loaded:
            echo(f"{url}: loads models on demand, and sees by itself what {name} is now")
