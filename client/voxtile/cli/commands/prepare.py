"""`voxtile prepare`: a scan as an nnU-Net model sees it, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, tell
from voxtile.io.formats.all import all_files
from voxtile.io.same_file import check_outputs_apart
from voxtile.options import Options
from voxtile.outputs.prepared_files import check_prepared_files, files_of, write_prepared_scan
from voxtile.segmenter import Segmenter


def prepare(
    scans: options.Scans,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="CASE.nii.gz", help="Several channels are CASE_0000.nii.gz, …."),
    ],
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
) -> None:
    """Write a scan as an nnU-Net model sees it, for voxtile-build to calibrate and certify engines on."""
    with errors_for_the_user():
        chosen = Options(connection=server.connection(), **scan.for_library())
        with Segmenter(server.url, model, chosen) as segmenter:
            check_prepared_files(segmenter.card, output)
            files = files_of(output, len(segmenter.card.channels))
            inputs = [file for one in scans for file in all_files(one)]
            check_outputs_apart(inputs, [("the prepared scan", file) for file in files])
            for file in write_prepared_scan(segmenter.load(scans).prepared, segmenter.card, output):
                tell(str(file))
