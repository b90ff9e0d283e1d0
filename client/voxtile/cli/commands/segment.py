"""`voxtile segment`: one scan in, its mask out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar
from voxtile.cli.output_options import OutputFiles, check_show_patient, files_of
from voxtile.cli.pacs_options import SourceOptions
from voxtile.cli.written import check_report_file, report_file_of, write_report
from voxtile.errors import OutputError, failures_of
from voxtile.io.atomic import check_writable
from voxtile.io.formats.all import all_files, files_to_write
from voxtile.io.same_file import check_outputs_apart
from voxtile.io.writing import write_image
from voxtile.outputs.base import Output
from voxtile.outputs.report import Stopwatch
from voxtile.segmenter import Segmenter


def segment(
    scans: options.ScansOrAddresses,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MASK", help="The mask: .nii.gz, .nii, .nrrd, .mha, .mgz, ….")
    ],
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    pacs: SourceOptions,
    beside: OutputFiles,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
    ] = None,
    show_patient: options.ShowPatient = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment one scan and write its mask on the scan's own grid.

    The mask is written first. If another output fails, the others are still written, and the exit code says so.
    """
    report_file = report_file_of(json_file)
    files = files_of(beside)
    with errors_for_the_user():
        check_show_patient(show_patient, [one for one, _ in files])
        keep_scores = any(one.needs_scores for one, _ in files)
        chosen = options.library_options(server, scan, method, transfer, keep_scores=keep_scores)
        inputs = pacs.scans(scans)
        _check_outputs([one for one in inputs if isinstance(one, Path)], output, files, report_file)
        with Segmenter(server.url, model, chosen) as segmenter:
            for one, _ in files:
                one.check_model(segmenter.card)
            loaded = segmenter.load(inputs)
            with progress_bar("segmenting", quiet) as progress:
                segmentation = segmenter.run(loaded, progress)
        watch = Stopwatch(segmentation.report.seconds)
        with watch.step("write"):
            write_image(
                segmentation.mask, output, loaded.volume
            )  # first: no failure of another output may cost the mask
            result = segmenter.result(loaded, segmentation, show_patient)
            failures = failures_of(partial(one.save, result, file) for one, file in files)
        report = segmentation.report.model_copy(update={"seconds": watch.stop()})
        failures += failures_of([partial(write_report, report, json_file)])
        if failures:
            raise OutputError(f"{'; '.join(failures)}; the mask is written to {output}")


def _check_outputs(
    scans: Sequence[Path], output: Path, files: Sequence[tuple[Output, Path]], report_file: Path | None
) -> None:
    """Checks every output's name, place and identity. Raises OutputError."""
    masks = files_to_write(output)
    check_report_file(report_file)
    written = [("the mask", file) for file in masks]
    written += [(f"the file of --{one.name}", each) for one, file in files for each in one.files(file)]
    written += [("the report", report_file)] if report_file is not None else []
    check_outputs_apart([file for scan in scans for file in all_files(scan)], written)
    for _, path in written:
        check_writable(path)
