"""The command `voxtile-build`: each subcommand is one call of the library.

The library is imported inside the commands: `--help` should not load torch, and `verify` does not need it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli.local_paths import paths_only
from voxtile.cli.parameters import expand_options
from voxtile.cli.usage import is_usage_error, tell_usage
from voxtile.errors import InputError
from voxtile_build import __version__
from voxtile_build.cli.console import Steps, announce, echo, exit_code, warn
from voxtile_build.cli.container import container_command
from voxtile_build.cli.options import (
    CHECKPOINT,
    Checkpoint,
    Configuration,
    Engines,
    Folds,
    Name,
    NameOrVersion,
    NewName,
    NewVersion,
    Quiet,
    Repository,
    Settings,
    TrainerKeepsNetwork,
    join_values,
    sizes,
    split,
)
from voxtile_build.cli.server_options import Measured
from voxtile_build.cli.slimming_commands import distil
from voxtile_build.cli.version_commands import promote, remove, rollback
from voxtile_build.errors import BuildError, ContainerNeeded, RepositoryError, SourceError

app = typer.Typer(
    help="Builds entries of a Triton model repository, each engine with its certificate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"voxtile-build {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Builds entries of a Triton model repository, each engine with its certificate."""


@app.command()
def spec(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.toml…", help="One or more models/NAME.toml.")],
    repository: Repository,
    engines: Engines = None,
    settings: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Build models from their specs."""
    from voxtile_build.build import build
    from voxtile_build.importers.settings import spec_with_settings
    from voxtile_build.spec.spec import load_spec

    built = []
    for file in files:
        loaded = spec_with_settings(file, settings) if settings else load_spec(file)
        steps = Steps(loaded.name, quiet=quiet)
        built.append(build(loaded, repository, engines=split(engines), step=steps))
        announce(built[-1], repository)
    raise typer.Exit(exit_code(built))


@app.command()
def init(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Weights, a network in a file, a MONAI bundle, or a folder.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SPEC.toml", help="The new file; its name becomes the model's.")
    ],
) -> None:
    """Look at what you have, and write a commented spec."""
    from voxtile_build.importers.initial.write import write_initial_spec

    draft = write_initial_spec(source, output)
    echo(f"found: {draft.found}")
    left = len(draft.spec.todo)
    echo(f"wrote: {output}" + (f", in which todo says the {left} things that you must check" if left else ""))
    echo(f"next:  voxtile-build explain {output}; voxtile-build spec {output} --repository model_repository")


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="A spec; its weights need not exist.")],
    scan: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SCAN…", help="A scan, a file a channel; else a made-up one."),
    ] = None,
    shape: Annotated[str, typer.Option("--shape", metavar="IxJxK", help="Voxels of the made-up scan.")] = "512x512x300",
    spacing: Annotated[
        str, typer.Option("--spacing", metavar="IxJxK", help="Voxel size of the made-up scan, in mm.")
    ] = "0.8x0.8x1.5",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in voxels and bytes.")] = False,
) -> None:
    """Say in words what a spec does to a scan, with the sizes at each step."""
    from voxtile_build.explaining.explanation import explain_spec
    from voxtile_build.explaining.words import as_json, as_text
    from voxtile_build.spec.spec import load_spec

    size, step = sizes("--shape", shape), sizes("--spacing", spacing)
    voxels = (int(size[0]), int(size[1]), int(size[2]))
    if voxels != size:
        raise typer.BadParameter(f"--shape: expected whole numbers of voxels, found {shape!r}")
    found = explain_spec(load_spec(file), scan or (), voxels, step)
    echo(as_json(found) if json_output else as_text(found))


@app.command()
def prune(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER.toml", help="A spec with weights.")],
    width: Annotated[float, typer.Option("--width", metavar="W", help="Share of the channels that stay, such as 0.5.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="STUDENT.toml", help="The new file; its weights are written beside it."),
    ],
) -> None:
    """Cut the least important channels out of a network. What is left must be trained before it is of use."""
    from voxtile_build.slimming.pruned import write_pruned

    pruned = write_pruned(teacher, width, output)
    before, after = pruned.parameters
    echo(f"wrote: {pruned.file} and {pruned.weights}")
    for key, (wide, narrow) in pruned.widths.items():
        echo(f"{key}: {wide} -> {narrow}")
    echo(f"parameters: {before:,} -> {after:,} ({after / before:.0%})")
    echo("pruned and not trained: its masks are wrong until it is trained")
    echo(f"next:  train it yourself, or: voxtile-build distil {teacher} --width {width:g} --scans DIR --output DIR")


@app.command()
def nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A trained nnU-Net v2 model, TRAINER__PLANS__CONFIGURATION, or an exported zip file."
        ),
    ],
    name: NewName,
    repository: Repository,
    version: NewVersion = None,
    folds: Folds = None,
    checkpoint: Checkpoint = CHECKPOINT,
    configuration: Configuration = None,
    engines: Engines = None,
    settings: Settings = None,
    trainer_keeps_network: TrainerKeepsNetwork = False,
    quiet: Quiet = False,
) -> None:
    """Import a trained nnU-Net v2 folder: an entry a fold, averaged on the server."""
    from voxtile_build.build import build_models
    from voxtile_build.importers.nnunet.models import models_of
    from voxtile_build.importers.settings import read_settings

    models = models_of(
        folder,
        name,
        folds=split(folds),
        checkpoint=checkpoint,
        configuration=configuration,
        settings=read_settings(settings) if settings else None,
        trainer_keeps_network=trainer_keeps_network,
    )
    if version is not None and len(models) > 1:
        raise SourceError(f"--version: {folder} is a cascade, which has no versions; leave it out")
    models = tuple(model.numbered(version) for model in models)
    built = build_models(models, repository, engines=split(engines), step=Steps(name, quiet=quiet))
    for published in built:
        announce(published, repository)
    raise typer.Exit(exit_code(built))


@app.command()
def nnunet_set(
    file: Annotated[Path, typer.Argument(metavar="SET.toml", help="Which trained models make one mask, and how.")],
    name: NewName,
    repository: Repository,
    engines: Engines = None,
    settings: Settings = None,
    trainer_keeps_network: Annotated[
        bool, typer.Option("--trainer-keeps-network", help="As for nnunet, for the trainers of all models.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Import several trained nnU-Net models as one public model that gives one mask."""
    from voxtile_build.build import build_models
    from voxtile_build.importers.nnunet.part_set import part_set_of
    from voxtile_build.importers.settings import read_settings

    given = read_settings(settings) if settings else None
    found = part_set_of(file, name, repository, settings=given, trainer_keeps_network=trainer_keeps_network)
    steps = Steps(name, quiet=quiet)
    built = build_models(found.models, repository, engines=split(engines), step=steps, model_set=found.model_set)
    for published in built:
        announce(published, repository)
    raise typer.Exit(exit_code(built))


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A MONAI bundle: a folder with configs/ and models/.")],
    name: NewName,
    repository: Repository,
    version: NewVersion = None,
    engines: Engines = None,
    settings: Settings = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="In place of a value of configs/inference, such as inferer::overlap=0.5. May be given more than once.",
        ),
    ] = None,
    spec_file: Annotated[
        Path | None,
        typer.Option("--write-spec", metavar="FILE.toml", help="Write the bundle's spec there as well, to go on from."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import a MONAI bundle; what cannot be translated is named and refused."""
    from voxtile_build.build import build_models
    from voxtile_build.importers.bundle.bundle import model_of
    from voxtile_build.importers.settings import read_settings
    from voxtile_build.spec.spec_to_toml import write_spec

    model = model_of(folder, name, read_settings(settings) if settings else None, values or ()).numbered(version)
    if spec_file is not None:
        write_spec(model.spec, spec_file)
        echo(f"{name}: spec written to {spec_file}")
    (built,) = build_models([model], repository, engines=split(engines), step=Steps(name, quiet=quiet))
    announce(built, repository)
    raise typer.Exit(exit_code([built]))


@app.command()
def profile(
    name: NameOrVersion,
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
    from voxtile_build.repository.asked import asked_entry

    name = asked_entry(name, repository)
    measured = measure(name, repository, runs=runs, batch=batch)
    echo(as_text(measured, top))
    write(measured, json_file, plot_file)


@app.command()
def point(
    name: NameOrVersion,
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE|fastest", help="One of the engines that are built, or the one that was fastest."
        ),
    ],
    repository: Repository,
) -> None:
    """Let a public name stand for another of its engines."""
    from voxtile_build.repository.asked import asked_entry
    from voxtile_build.repository.default_engine import FASTEST, fastest_engine, set_default_engine

    name = asked_entry(name, repository)
    chosen = fastest_engine(name, repository) if engine == FASTEST else engine
    set_default_engine(name, chosen, repository)
    echo(f"{name} is {chosen}")


@app.command()
def volume(
    name: Name,
    repository: Repository,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Folder for the entries. Left out: beside the repository, DIR-volume."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Scans that are segmented at once.")] = 1,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Scans that wait; a further one is refused at once.")
    ] = 8,
    max_ram: Annotated[
        float | None, typer.Option("--max-ram", metavar="MIB", min=1, help="Most memory for one scan on the server.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the entries instead.")] = False,
) -> None:
    """Write NAME_scan and NAME_scan_stream: a scan in, its mask out, by one request to Triton."""
    from voxtile_build.repository.volume import VolumeSettings, volume_repository, write_volume_entries
    from voxtile_build.repository.volumes_in_step import remove_volume_entries

    target = to or volume_repository(repository)
    if remove:
        for folder in remove_volume_entries(name, target):
            echo(f"removed {folder}")
        return
    for folder in write_volume_entries(name, repository, target, VolumeSettings(count, queue, max_ram)):
        echo(str(folder))
    echo(f"serve them with: voxtile-server --repository {repository} --volume-repository {target}")


def verify(
    name: NameOrVersion,
    repository: Repository,
    servers: Measured,
    tiles_only: Annotated[
        bool, typer.Option("--tiles-only", help="Leave out the stored scan, which takes longer.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Repeat a model's certificates: hashes of the files, and what its engines give now."""
    from voxtile_build.certificate.served import CONNECTION
    from voxtile_build.certificate.verified_devices import record_devices
    from voxtile_build.certificate.verify import verify as verify_model
    from voxtile_build.certificate.verify import version_warnings
    from voxtile_build.repository.asked import asked_entry

    name, steps, holds = asked_entry(name, repository), Steps(name, quiet=quiet), True
    connection = servers.connection(shared_memory=CONNECTION.shared_memory, deadline_s=CONNECTION.deadline_s)
    places: list[str | None] = [*servers.url] or [None]
    for url in places:
        verdicts = verify_model(name, repository, url, scans=not tiles_only, step=steps, connection=connection)
        for verdict in verdicts:
            echo(f"{url}: {verdict.as_line()}" if len(servers.url) > 1 else verdict.as_line())
        holds = holds and all(verdict.holds for verdict in verdicts)
        if url:
            try:
                for line in record_devices(name, repository, verdicts):
                    echo(line)
            except RepositoryError as error:
                warn([f"the device that was verified could not be written into the card: {error}"])
    warn(version_warnings(name, repository))
    if not holds:
        raise typer.Exit(1)


for command in (verify, promote, rollback, remove):
    app.command()(expand_options(command))
app.command()(distil)


@app.command()
def networks() -> None:
    """List the networks that a spec can name."""
    from voxtile_build.networks import NETWORKS

    for network in NETWORKS:
        echo(f"{network.name:20} {network.module}.{network.attribute}")


for registered in app.registered_commands:
    if registered.callback is not None:
        registered.callback = paths_only(registered.callback, contextlib.nullcontext)  # `main` tells the error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; an error becomes one line on standard error.

    Returns:
        The exit code: 0, that of the error (see `errors`), 2 for a wrong command line, or 130 after Ctrl-C.
    """
    _silence_libraries()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        result = app(args=join_values(given), prog_name="voxtile-build", standalone_mode=False)
    except BuildError as error:
        echo(f"voxtile-build: {error}", err=True)
        if isinstance(error, ContainerNeeded):
            given = sys.argv[1:] if arguments is None else arguments
            command = container_command(error.image, given, error.files, error.cache)
            echo(f"\n  {command}", err=True)
        return error.exit_code
    except InputError as error:  # of the client's options and paths
        echo(f"voxtile-build: {error}", err=True)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:  # such as a full disk while an engine is written
        echo(f"voxtile-build: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        return 2
    except Exception as error:
        if not is_usage_error(error):
            raise
        tell_usage(error, "voxtile-build")
        return 2
    return result if isinstance(result, int) else 0


def _silence_libraries() -> None:
    """Libraries below print messages of their own; what concerns the user comes as an error or a warning."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
