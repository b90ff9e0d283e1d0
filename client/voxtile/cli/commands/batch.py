"""`voxtile batch`: a folder of scans in, a folder of masks out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxtile.batch.run import segment_folder
from voxtile.batch.summary import SUMMARY_CSV, Outcome
from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar
from voxtile.cli.output_options import OutputFlags, wanted_of
from voxtile.segmenter import Segmenter


def batch(
    inputs: Annotated[Path, typer.Argument(metavar="IN_DIR", help="A folder of scans, at any depth.")],
    outputs: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The folder for masks and the summary.")],
    model: options.Model,
    server: options.ServerOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFlags,
    quiet: options.Quiet = False,
) -> None:
    """Segment a folder of scans; finished ones are left alone, so an interrupted run can be repeated.

    Exit code 0: every scan has its mask; 1: some failed, see summary.csv; 3: the servers went away.
    """
    wanted = wanted_of(beside)
    with errors_for_the_user():
        chosen = options.library_options(server, method, transfer, keep_scores=any(one.needs_scores for one in wanted))
        with Segmenter(server.url, model, chosen) as segmenter, progress_bar("scans", quiet) as progress:

            def on_result(outcome: Outcome, number: int, total: int) -> None:
                if progress:
                    progress(number, total)
                if outcome.status == "failed":
                    sys.stderr.write(f"voxtile: {outcome.case}: {outcome.error}\n")

            result = segment_folder(segmenter, inputs, outputs, beside=wanted, on_result=on_result)
        counts = {status: sum(o.status == status for o in result.outcomes) for status in ("done", "found", "failed")}
        typer.echo(
            f"{counts['done']} segmented, {counts['found']} found finished, {counts['failed']} failed; "
            f"see {outputs / SUMMARY_CSV}"
        )
    raise typer.Exit(result.exit_code)
