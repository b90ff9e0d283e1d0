"""`voxtile segment`: one scan in, its mask out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar
from voxtile.cli.output_options import OutputFiles, files_of
from voxtile.io.atomic import check_writable
from voxtile.io.writing import check_mask_name, write_image
from voxtile.outputs.report import Report, Stopwatch, write_text
from voxtile.segmenter import Segmenter

STANDARD_OUTPUT = "-"


def segment(
    scans: options.Scans,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MASK", help="The mask, .nii or .nii.gz.")],
    model: options.Model,
    server: options.ServerOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFiles,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Segment one scan and write its mask on the scan's own grid."""
    report_file = Path(json_file) if json_file and json_file != STANDARD_OUTPUT else None
    files = files_of(beside)
    with errors_for_the_user():
        keep_scores = any(one.needs_scores for one, _ in files)
        chosen = options.library_options(server, method, transfer, keep_scores=keep_scores)
        check_mask_name(output)
        for target in filter(None, (output, report_file)):
            check_writable(target)
        for one, file in files:
            one.check(file)
        with Segmenter(server.url, model, chosen) as segmenter:
            for one, _ in files:
                one.check_model(segmenter.card)
            loaded = segmenter.load(scans)
            with progress_bar("segmenting", quiet) as progress:
                segmentation = segmenter.run(loaded, progress)
        watch = Stopwatch(segmentation.report.seconds)
        with watch.step("write"):
            write_image(segmentation.mask, output)  # first: no failure of another output may cost the mask
            for one, file in files:
                one.save(segmenter.result(loaded, segmentation), file)
        _write_report(segmentation.report.model_copy(update={"seconds": watch.stop()}), json_file, report_file)


def _write_report(report: Report, json_file: str | None, report_file: Path | None) -> None:
    text = report.model_dump_json(indent=2) + "\n"
    if json_file == STANDARD_OUTPUT:
        sys.stdout.write(text)
    elif report_file:
        write_text(text, report_file)
