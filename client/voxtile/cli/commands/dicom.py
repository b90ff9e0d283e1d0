"""`voxtile dicom`: a DICOM series in, DICOM objects about it out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar, say
from voxtile.cli.output_options import OutputFiles, check_show_patient, files_of
from voxtile.cli.pacs_options import PacsOptions
from voxtile.cli.written import check_report_file, report_file_of, write_report
from voxtile.dicom_case import NIFTI, CaseOutputs, segment_series
from voxtile.errors import OutputError, failures_of
from voxtile.outputs.dicom.seg import SegKind
from voxtile.outputs.dicom.write import KINDS
from voxtile.segmenter import Segmenter


def dicom(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="[IN] OUT",
            help="IN: a series or a study, as a folder, a zip, or a file; or --from. "
            "OUT: a folder, new or not; or a name that ends in .dcm, for the SEG alone.",
        ),
    ],
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFiles,
    pacs: PacsOptions,
    seg: Annotated[
        SegKind, typer.Option(help="How seg.dcm is encoded: bits (widest support), or one number a voxel (smaller).")
    ] = "binary",
    sr: Annotated[bool, typer.Option("--sr", help="Also write sr.dcm: volumes and intensities, as TID 1500.")] = False,
    sc: Annotated[
        bool, typer.Option("--sc", help="Also write sc.dcm: a picture with volumes, for any viewer.")
    ] = False,
    rtstruct: Annotated[bool, typer.Option("--rtstruct", help="Also write rtstruct.dcm: closed outlines.")] = False,
    nifti: Annotated[bool, typer.Option("--nifti", help=f"Also write {NIFTI}.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
    ] = None,
    show_patient: options.ShowPatient = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment a DICOM series and write what was found as DICOM: a SEG on the series' own frames, and more on request.

    The SEG is written first. If another output fails, the others are still written, and the exit code says so.
    """
    *inputs, output = places
    kinds = [kind for kind, wanted in zip(KINDS, (True, sr, sc, rtstruct), strict=True) if wanted]
    report_file = report_file_of(json_file)
    others = [("the report", report_file)] if report_file is not None else []
    with errors_for_the_user():
        check_report_file(report_file)
        check_show_patient(show_patient, [one for one, _ in files_of(beside)])
        outputs = CaseOutputs(output, kinds, seg, nifti, files_of(beside), others, show_patient)
        chosen = options.library_options(server, scan, method, transfer, keep_scores=outputs.needs_scores)
        outputs.check(inputs)
        pacs.check(inputs)
        with Segmenter(server.url, model, chosen) as segmenter:
            outputs.check_model(segmenter.card)  # a study is not fetched for nothing
            with pacs.scan(inputs, scan.series) as came:
                done = segment_series(
                    segmenter, came.folder, outputs, partial(_store, pacs), progress_bar("segmenting", quiet)
                )
        report = done.report.model_copy(update={"warnings": [*came.warnings, *done.report.warnings]})
        failures = [*done.failures, *failures_of([partial(write_report, report, json_file)])]
        for line in () if quiet else (*came.warnings, *done.notes):
            say(line)
        if failures:
            raise OutputError(f"{'; '.join(failures)}; the SEG is written to {done.objects['seg']}")


def _store(pacs: PacsOptions, files: Sequence[Path]) -> None:
    """Stores objects where --to says, and tells which were there already."""
    there = pacs.store(files).there
    if there:
        say(f"the PACS has it already, and was not sent it again: {', '.join(file.name for file in there)}")
