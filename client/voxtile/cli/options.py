"""What the commands share: options for reaching servers, errors made readable, progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from voxtile.errors import VoxtileError
from voxtile.triton.endpoint import ConnectionConfig

DEFAULT_URL = ["localhost:8001"]

Model = Annotated[str, typer.Option("--model", "-m", help="The model's public name.")]
Urls = Annotated[
    list[str],
    typer.Option(
        "--url", envvar="VOXTILE_URL", help="HOST:PORT of a server's gRPC service; more than once for several servers."
    ),
]
Overlap = Annotated[float | None, typer.Option(help="Share of the ROI that tiles share; changes the result.")]
Mode = Annotated[str | None, typer.Option(help="constant or gaussian; changes the result.")]
Mirror = Annotated[bool, typer.Option(help="Average over the model's mirrorings, if it has any.")]
SkipEmpty = Annotated[bool, typer.Option("--skip-empty", help="Leave out tiles outside the body.")]
MaxRam = Annotated[int | None, typer.Option("--max-ram", metavar="MIB", min=1, help="Most memory to take, in MiB.")]
AllowHalfScores = Annotated[
    bool, typer.Option("--allow-half-scores", help="Sum in half precision if --max-ram needs it; changes the result.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Tiles a request; the server's most by default.")]
InFlight = Annotated[int, typer.Option(min=1, help="Most requests on their way to one server.")]
SharedMemory = Annotated[
    bool | None,
    typer.Option("--shared-memory/--no-shared-memory", help="By default, where the server is on this machine."),
]
Compression = Annotated[str | None, typer.Option(help="gzip or deflate on the wire; pays on slow lines only.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one request may take.")]
NoResponseTimeout = Annotated[float, typer.Option(help="Seconds without any answer from any server.")]
TlsFile = Annotated[Path | None, typer.Option(help="PEM file; any of the three turns TLS on.")]
Header = Annotated[list[str], typer.Option("--header", metavar="NAME:VALUE", help="Sent with every call, as a token.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def connection_config_from(
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    headers: list[str],
    shared_memory: bool | None = False,
    compression: str | None = None,
    timeout: float = 30.0,
) -> ConnectionConfig:
    """The connection that the options describe. Raises typer.BadParameter for options that say nothing."""
    if compression not in (None, "gzip", "deflate"):
        raise typer.BadParameter(f"--compression is gzip or deflate, found {compression!r}")
    tls = (ca, key, certificate) if ca or certificate or key else None
    return ConnectionConfig(tls, dict(_header(text) for text in headers), shared_memory, compression, timeout)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"--header is NAME:VALUE, found {text!r}")
    return name.strip().lower(), value.strip()


@contextmanager
def errors_for_the_user() -> Iterator[None]:
    """Ends with one line and the error's exit code; an interrupted run ends with 130, as shells expect."""
    try:
        yield
    except VoxtileError as error:
        sys.stderr.write(f"voxtile: {' '.join(str(error).split())}\n")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("voxtile: interrupted; nothing half-written is left\n")
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal's error output; nothing in a pipe."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
