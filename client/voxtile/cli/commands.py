"""The command `voxtile`: translates arguments into library calls, errors into exit codes, and nothing else."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from voxtile.cli import options
from voxtile.cli.allocator import limit_malloc_arenas
from voxtile.cli.options import DEFAULT_URL, connection_config_from, errors_for_the_user, progress_bar
from voxtile.errors import OutputError
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.transport import RetryPolicy

app = typer.Typer(
    help="Segments 3D scans with models on a Triton server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PIPE_WIDTH = 160
"""Columns of a table that no terminal limits."""

Scans = Annotated[
    list[Path], typer.Argument(metavar="SCAN...", help="NIfTI files: one a channel, in the model's order.")
]
Mask = Annotated[Path, typer.Option("--output", "-o", metavar="MASK", help="The mask, .nii or .nii.gz.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
]
Preview = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the mask over three slices.")]
Probabilities = Annotated[
    Path | None, typer.Option(metavar="FILE.npz", help="Of an nnU-Net model: also write what nnU-Net would.")
]
SpotCheck = Annotated[int, typer.Option(min=0, help="Send this many of the left out tiles all the same.")]


@app.command()
def segment(
    scans: Scans,
    output: Mask,
    model: options.Model,
    url: options.Urls = DEFAULT_URL,
    json_file: Json = None,
    preview: Preview = None,
    probabilities: Probabilities = None,
    overlap: options.Overlap = None,
    mode: options.Mode = None,
    mirror: options.Mirror = True,
    skip_empty: options.SkipEmpty = False,
    spot_check: SpotCheck = 0,
    max_ram: options.MaxRam = None,
    allow_half_scores: options.AllowHalfScores = False,
    batch: options.Batch = None,
    in_flight: options.InFlight = 8,
    shared_memory: options.SharedMemory = None,
    compression: options.Compression = None,
    timeout: options.Timeout = 300.0,
    no_response_timeout: options.NoResponseTimeout = 120.0,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
    quiet: options.Quiet = False,
) -> None:
    """Segment one scan and write its mask on the scan's own grid."""
    from voxtile.io.images import check_writable, write_image
    from voxtile.outputs.report import write_text
    from voxtile.segmenter import Options, Segmenter

    chosen = Options(
        overlap=overlap,
        mode=mode,
        mirror=mirror,
        batch=batch,
        in_flight=in_flight,
        skip_empty=skip_empty,
        spot_check=spot_check,
        max_ram=_bytes(max_ram),
        half_scores=allow_half_scores,
        keep_scores=probabilities is not None,
        connection=connection_config_from(tls_ca, tls_cert, tls_key, header, shared_memory, compression, timeout),
        retry_policy=RetryPolicy(no_response_timeout_s=no_response_timeout),
    )
    report_file = Path(json_file) if json_file and json_file != "-" else None
    with errors_for_the_user():
        _check_mask_name(output)
        for target in filter(None, (output, preview, report_file)):
            check_writable(target)
        with Segmenter(url, model, chosen) as segmenter:
            if probabilities:
                from voxtile.outputs.probabilities import check_probabilities

                check_probabilities(segmenter.card, probabilities)
            loaded = segmenter.load(scans)
            with progress_bar("segmenting", quiet) as progress:
                result = segmenter.run(loaded, progress)
        with loaded.watch.step("write"):
            if preview:
                from voxtile.outputs.preview import draw_preview

                draw_preview(loaded.volume, result.labels, segmenter.card.labels, preview)
            if probabilities and result.scores is not None:
                from voxtile.outputs.probabilities import write_probabilities

                write_probabilities(result.scores, loaded.prepared, probabilities)
            write_image(result.mask, output)
        report = result.report.model_copy(update={"seconds": loaded.watch.stop()}).model_dump_json(indent=2) + "\n"
        if json_file == "-":
            sys.stdout.write(report)
        elif report_file:
            write_text(report, report_file)


@app.command()
def batch(
    inputs: Annotated[Path, typer.Argument(metavar="IN_DIR", help="Folder of scans, at any depth.")],
    outputs: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for masks and the summary.")],
    model: options.Model,
    url: options.Urls = DEFAULT_URL,
    overlap: options.Overlap = None,
    mode: options.Mode = None,
    mirror: options.Mirror = True,
    skip_empty: options.SkipEmpty = False,
    max_ram: options.MaxRam = None,
    allow_half_scores: options.AllowHalfScores = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write nnU-Net's probabilities, CASE.npz beside each mask.")
    ] = False,
    tiles: Annotated[int | None, typer.Option("--batch", min=1, help="Tiles a request.")] = None,
    in_flight: options.InFlight = 8,
    shared_memory: options.SharedMemory = None,
    compression: options.Compression = None,
    timeout: options.Timeout = 300.0,
    no_response_timeout: options.NoResponseTimeout = 120.0,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
    quiet: options.Quiet = False,
) -> None:
    """Segment a folder of scans; finished ones are left alone, so an interrupted run can be repeated.

    Exit code 0: every scan has its mask; 1: some failed, see summary.csv; 3: the servers went away.
    """
    from voxtile.batch.folder import segment_folder
    from voxtile.segmenter import Options, Segmenter

    chosen = Options(
        overlap=overlap,
        mode=mode,
        mirror=mirror,
        batch=tiles,
        in_flight=in_flight,
        skip_empty=skip_empty,
        max_ram=_bytes(max_ram),
        keep_scores=probabilities,
        half_scores=allow_half_scores,
        connection=connection_config_from(tls_ca, tls_cert, tls_key, header, shared_memory, compression, timeout),
        retry_policy=RetryPolicy(no_response_timeout_s=no_response_timeout),
    )
    with errors_for_the_user():
        with Segmenter(url, model, chosen) as segmenter, progress_bar("scans", quiet) as progress:
            result = segment_folder(
                segmenter,
                inputs,
                outputs,
                probabilities=probabilities,
                told=lambda outcome, number, total: _tell_outcome(outcome, progress and progress(number, total)),
            )
        counts = {status: sum(o.status == status for o in result.outcomes) for status in ("done", "found", "failed")}
        typer.echo(
            f"{counts['done']} segmented, {counts['found']} found finished, {counts['failed']} failed; "
            f"see {outputs / 'summary.csv'}"
        )
    raise typer.Exit(result.exit_code)


@app.command()
def prepare(
    scans: Scans,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="CASE.nii.gz", help="Several channels: CASE_0000.nii.gz, ….")
    ],
    model: options.Model,
    url: options.Urls = DEFAULT_URL,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
) -> None:
    """Write a scan as an nnU-Net model sees it, for voxtile-build to calibrate and certify engines on."""
    from voxtile.outputs.prepared_files import check_prepared_files, write_prepared_scan
    from voxtile.segmenter import Options, Segmenter

    chosen = Options(connection=connection_config_from(tls_ca, tls_cert, tls_key, header, None))
    with errors_for_the_user(), Segmenter(url, model, chosen) as segmenter:
        check_prepared_files(segmenter.card, output)
        for file in write_prepared_scan(segmenter.load(scans).prepared, segmenter.card, output):
            typer.echo(str(file))


@app.command()
def bench(
    scans: Scans,
    model: options.Model,
    url: options.Urls = DEFAULT_URL,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once.")] = 2,
    count: Annotated[int, typer.Option("--scans", min=1, help="Scans in all.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
) -> None:
    """Measure a service in scans an hour: several clients segment the same scan over and over."""
    from voxtile.cli.load_test import run_load_test
    from voxtile.segmenter import Options

    chosen = Options(connection=connection_config_from(tls_ca, tls_cert, tls_key, header, None, timeout=300.0))
    with errors_for_the_user():
        statistics = run_load_test(url, model, scans, clients=clients, scans=count, options=chosen).model_dump()
    if as_json:
        sys.stdout.write(json.dumps(statistics, indent=2) + "\n")
        return
    for name, value in statistics.items():
        typer.echo(f"{name.replace('_', ' '):16} {value}")


@app.command()
def models(
    url: options.Urls = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects, for programs.")] = False,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
) -> None:
    """List what the server offers, from the models' cards."""
    from voxtile.triton.catalogue import list_models

    connection = connection_config_from(tls_ca, tls_cert, tls_key, header)
    with errors_for_the_user():
        offers = [offer for one in url for offer in list_models(Endpoint(one, connection))]
        if as_json:
            sys.stdout.write(json.dumps([offer.as_json() for offer in offers], indent=2) + "\n")
            return
        table = Table(box=None)
        table.add_column("model", no_wrap=True)
        for title in ("what", "channels", "ROI", "spacing mm", "labels", "engine", "certificate"):
            table.add_column(title)
        for offer in offers:
            table.add_row(*offer.row())
        console = Console()
        console.print(table, width=console.width if console.is_terminal else PIPE_WIDTH)


@app.command()
def doctor(
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="[SCAN...]", help="A scan that is to be segmented.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's public name.")] = None,
    url: options.Urls = DEFAULT_URL,
    tls_ca: options.TlsFile = None,
    tls_cert: options.TlsFile = None,
    tls_key: options.TlsFile = None,
    header: options.Header = [],  # noqa: B006 - typer reads it once
) -> None:
    """Say why it will not work, before it does not: server, models, certificate, shared memory, scan, memory.

    Exit code 0: all is well; 2: something would stop a segmentation.
    """
    from voxtile.cli.doctor import examine

    connection = connection_config_from(tls_ca, tls_cert, tls_key, header, None)
    healthy = True
    for finding in examine(url, model, scans or [], connection):
        healthy &= finding.ok
        typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.detail}")
    raise typer.Exit(0 if healthy else 2)


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * 1024**2


def _check_mask_name(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path}: a mask is a NIfTI file; name it .nii or .nii.gz")


def _tell_outcome(outcome: object, _: None) -> None:
    status, case, error = (getattr(outcome, name) for name in ("status", "case", "error"))
    if status == "failed":
        sys.stderr.write(f"voxtile: {case}: {error}\n")


def main() -> None:
    """The console script's entry point."""
    limit_malloc_arenas()
    logging.basicConfig(level=logging.WARNING, format="voxtile: %(message)s")
    app()


__all__ = ["app", "main"]
