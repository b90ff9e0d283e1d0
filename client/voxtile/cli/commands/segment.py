"""`voxtile segment`: one scan in, its mask out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar
from voxtile.errors import OutputError
from voxtile.extras import require
from voxtile.io.atomic import check_writable
from voxtile.io.writing import write_image
from voxtile.outputs.report import Report, Stopwatch, write_text
from voxtile.segmenter import LoadedScan, Segmentation, Segmenter

STANDARD_OUTPUT = "-"


def segment(
    scans: options.Scans,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MASK", help="The mask, .nii or .nii.gz.")],
    model: options.Model,
    server: options.ServerOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
    ] = None,
    preview: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the mask over three slices.")] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="For an nnU-Net model: also write the probabilities as nnU-Net does."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Segment one scan and write its mask on the scan's own grid."""
    report_file = Path(json_file) if json_file and json_file != STANDARD_OUTPUT else None
    with errors_for_the_user():
        chosen = options.library_options(server, method, transfer, keep_scores=probabilities is not None)
        _check_outputs(output, preview, report_file)
        with Segmenter(server.url, model, chosen) as segmenter:
            if probabilities:
                from voxtile.outputs.probabilities import check_probabilities

                check_probabilities(segmenter.card, probabilities)
            loaded = segmenter.load(scans)
            with progress_bar("segmenting", quiet) as progress:
                result = segmenter.run(loaded, progress)
        watch = Stopwatch(result.report.seconds)
        with watch.step("write"):
            if preview:
                from voxtile.outputs.preview import draw_preview

                draw_preview(loaded.volume, result.labels, segmenter.card.labels, preview)
            if probabilities:
                _write_probabilities(result, loaded, probabilities)
            write_image(result.mask, output)
        _write_report(result.report.model_copy(update={"seconds": watch.stop()}), json_file, report_file)


def _check_outputs(output: Path, preview: Path | None, report_file: Path | None) -> None:
    """Raises OutputError or MissingExtraError, before any work, where an output could not be written."""
    if not output.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{output}: a mask is a NIfTI file; name it .nii or .nii.gz")
    for target in filter(None, (output, preview, report_file)):
        check_writable(target)
    if preview:
        require("matplotlib", "preview", "a preview")


def _write_probabilities(result: Segmentation, loaded: LoadedScan, file: Path) -> None:
    from voxtile.outputs.probabilities import write_probabilities

    if result.scores is not None:
        write_probabilities(result.scores, loaded.prepared, file)


def _write_report(report: Report, json_file: str | None, report_file: Path | None) -> None:
    text = report.model_dump_json(indent=2) + "\n"
    if json_file == STANDARD_OUTPUT:
        sys.stdout.write(text)
    elif report_file:
        write_text(text, report_file)
