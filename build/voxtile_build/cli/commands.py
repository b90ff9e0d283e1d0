"""The command `voxtile-build`: each subcommand is one call of the library."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from voxtile_build.errors import BuildError

if TYPE_CHECKING:
    from voxtile_build.build import Published

app = typer.Typer(
    help="Builds entries of a Triton model repository, each engine with its certificate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Repository = Annotated[Path, typer.Option("--repository", metavar="DIR", help="Triton model repository.")]


@app.command()
def spec(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.toml…", help="One or more models/NAME.toml.")],
    repository: Repository,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engines", metavar="A,B", help="In place of the spec's; may be given more than once."),
    ] = None,
) -> None:
    """Build models from their specs."""
    from voxtile_build.build import build
    from voxtile_build.spec.spec import load_spec

    for file in files:
        loaded = load_spec(file)
        _tell(build(loaded, repository, engines=_split(engines), step=_Steps(loaded.name)))


@app.command()
def nnunet(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A trained nnU-Net v2 model: TRAINER__PLANS__CONFIGURATION.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="N", help="The public name of the model.")],
    repository: Repository,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0,1,…|all", help="Left out: every fold that was trained.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="File in each fold.")] = "checkpoint_final.pth",
    configuration: Annotated[
        str | None, typer.Option(help="3d_fullres, 3d_lowres, 2d, …; chooses where FOLDER holds several.")
    ] = None,
    engines: Annotated[
        list[str] | None, typer.Option("--engines", metavar="A,B", help="Engines to build; more than once is fine.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="[serving], [precision] and [acceptance] as in a spec."),
    ] = None,
) -> None:
    """Import a trained nnU-Net v2 folder: an entry a fold, averaged on the server."""
    from voxtile_build.importers.nnunet.folds import import_nnunet
    from voxtile_build.importers.nnunet.spec import read_settings

    imported = import_nnunet(
        folder,
        name,
        repository,
        folds=_split(folds),
        checkpoint=checkpoint,
        configuration=configuration,
        engines=_split(engines),
        settings=read_settings(settings) if settings else None,
        step=_Steps(name),
    )
    for published in imported:
        _tell(published)


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A MONAI bundle: a folder with configs/ and models/.")],
    name: Annotated[str, typer.Option("--name", metavar="N", help="The public name of the model.")],
    repository: Repository,
    engines: Annotated[
        list[str] | None, typer.Option("--engines", metavar="A,B", help="Engines to build; more than once is fine.")
    ] = None,
) -> None:
    """Import a MONAI bundle; what cannot be translated is named and refused."""
    from voxtile_build.importers.bundle.bundle import import_bundle

    published = import_bundle(folder, name, repository, engines=_split(engines), step=_Steps(name))
    _say(f"{name}: published {', '.join(published.entries)}; {name} is {published.card['engine']}")


@app.command()
def profile(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")],
    repository: Repository,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything measured.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="The same as a picture.")] = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="Runs to take the mean of.")] = 5,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Tiles in one run.")] = 1,
    top: Annotated[int, typer.Option("--top", metavar="N", help="Rows of each table.")] = 15,
) -> None:
    """Show where each engine spends its time, by kind of operator and by layer."""
    from voxtile_build.profile.profile import profile as measure
    from voxtile_build.profile.report import as_text, write

    measured = measure(name, repository, runs=runs, batch=batch)
    typer.echo(as_text(measured, top))
    write(measured, json_file, plot_file)


@app.command()
def point(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")],
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="onnxruntime, openvino or tensorrt.")],
    repository: Repository,
) -> None:
    """Let a public name stand for another of its engines."""
    from voxtile_build.build import point as point_to

    point_to(name, engine, repository)
    _say(f"{name} is {engine}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")],
    repository: Repository,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="HOST:PORT", help="gRPC service of the Triton that serves the repository."),
    ] = None,
    tiles_only: Annotated[
        bool, typer.Option("--tiles-only", help="Leave out the stored scan, which takes longer.")
    ] = False,
) -> None:
    """Repeat a model's certificates: the files' hashes, and the figures as its engines give them here and now."""
    from voxtile_build.certificate.verify import verify as verify_model

    verdicts = verify_model(name, repository, url, scans=not tiles_only)
    for verdict in verdicts:
        typer.echo(verdict.as_line())
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def networks() -> None:
    """List the networks that a spec can name."""
    from voxtile_build.networks import NETWORKS

    for network in NETWORKS:
        typer.echo(f"{network.name:20} {network.module}.{network.attribute}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see `errors`), having said what was wrong on one line."""
    _quiet_libraries()
    try:
        result = app(args=arguments, standalone_mode=False)
    except BuildError as error:
        print(f"voxtile-build: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        _show_usage_error(error)
        return 2
    return result if isinstance(result, int) else 0


class _Steps:
    """One line a step with its seconds, on a terminal with a spinner; in a pipe nothing."""

    def __init__(self, name: str) -> None:
        self.console = Console(stderr=True)
        self.name = name

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        begun = time.perf_counter()
        with self.console.status(f"{self.name}: {what}"):
            yield
        self.console.print(f"{self.name}: {what:32} {time.perf_counter() - begun:6.1f} s", highlight=False)


def _tell(published: Published) -> None:
    """What was published, on a terminal; what the user should know of it, always."""
    public = published.card["name"]
    for line in published.graphs:
        _say(f"{public}: {line}")
    for note in published.notes:
        typer.echo(f"note: {note}", err=True)
    _say(f"{public}: published {', '.join(published.entries)}; {public} is {published.card['engine']}")


def _say(text: str) -> None:
    if sys.stdout.isatty():
        typer.echo(text)


def _split(engines: list[str] | None) -> list[str] | None:
    return [name for group in engines or () for name in group.replace(",", " ").split()] or None


def _quiet_libraries() -> None:
    """Libraries below report on themselves; what concerns the user comes as an error."""
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLED", "1")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)


def _show_usage_error(error: Exception) -> None:
    message = getattr(error, "format_message", lambda: str(error))()
    typer.echo(f"voxtile-build: {message}; see voxtile-build --help", err=True)
