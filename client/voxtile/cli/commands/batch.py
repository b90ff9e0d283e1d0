"""`voxtile batch`: a folder of scans in, a folder of masks out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from voxtile.batch.cases import left_out_in_words
from voxtile.batch.index.page import INDEX
from voxtile.batch.run import BatchResult, segment_folder
from voxtile.batch.summary import SUMMARY_CSV, Outcome
from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar, say, tell
from voxtile.cli.output_options import OutputFlags, check_show_patient, wanted_of
from voxtile.segmenter import Segmenter


def batch(
    inputs: Annotated[Path, typer.Argument(metavar="IN_DIR", help="A folder of scans, at any depth.")],
    outputs: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The folder for masks and the summary.")],
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFlags,
    index: Annotated[
        bool, typer.Option("--index", help=f"Write {INDEX}: a page with pictures, volumes and outliers of all cases.")
    ] = False,
    show_patient: options.ShowPatient = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment a folder of scans; finished ones are left alone, so an interrupted run can be repeated.

    Exit code 0: every scan has its mask; 1: some failed or were left out, see summary.csv; 3: the servers went away.
    """
    wanted = wanted_of(beside)
    with errors_for_the_user():
        check_show_patient(show_patient, wanted)
        keep_scores = any(one.needs_scores for one in wanted)
        chosen = options.library_options(server, scan, method, transfer, keep_scores=keep_scores)
        with Segmenter(server.url, model, chosen) as segmenter, progress_bar("scans", quiet) as progress:

            def on_result(outcome: Outcome, number: int, total: int) -> None:
                progress(number, total)
                if outcome.status == "failed":
                    say(f"{outcome.case}: {outcome.error}")

            result = segment_folder(
                segmenter, inputs, outputs, beside=wanted, show_patient=show_patient, index=index, on_result=on_result
            )
        for line in left_out_in_words(result.left_out):
            say(line)
        tell(f"{_in_words(result)}; see {outputs / SUMMARY_CSV}")
    raise typer.Exit(result.exit_code)


def _in_words(result: BatchResult) -> str:
    """How many cases ended in which way; what did not happen to any is named only where it is expected."""
    counts = Counter(outcome.status for outcome in result.outcomes)
    left_out = sum(1 + one.others for one in result.left_out)
    rest = f", {counts['not tried']} not tried" if counts["not tried"] else ""
    rest += f", {left_out} left out" if left_out else ""
    return f"{counts['done']} segmented, {counts['found']} found finished, {counts['failed']} failed{rest}"
