"""`voxtile batch`: a folder of scans in, a folder of masks out; or the cases of a manifest, or one shard of them."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from voxtile.batch.cases import left_out_in_words
from voxtile.batch.cohort.run import Redo, segment_manifest
from voxtile.batch.cohort.shard import Shard, shard_of
from voxtile.batch.index.page import INDEX
from voxtile.batch.run import BatchResult, segment_folder
from voxtile.batch.summary import EXIT_STOPPED, SUMMARY_CSV, Outcome
from voxtile.cli import options
from voxtile.cli.cohort_options import CohortOptions
from voxtile.cli.console import errors_for_the_user, progress_bar, say, tell
from voxtile.cli.output_options import OutputFlags, check_show_patient, wanted_of
from voxtile.segmenter import Segmenter


def batch(
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFlags,
    cohort: CohortOptions,
    inputs: Annotated[
        Path | None, typer.Argument(metavar="IN_DIR", help="A folder of scans, at any depth.", show_default=False)
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Argument(metavar="OUT_DIR", help="The folder for masks and the summary.", show_default=False),
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help=f"Write {INDEX}: a page with pictures, volumes and outliers of all cases.")
    ] = False,
    show_patient: options.ShowPatient = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment many scans: those of IN_DIR into OUT_DIR, or those of --manifest into --out.

    Finished ones are left alone, so an interrupted run can be repeated.

    Exit code 0: every scan has its mask; 1: some failed or were left out, see summary.csv or voxtile collect; 3: the
    servers went away, or the disk is full; 75: a signal stopped a run of --manifest, run it again to go on.
    """
    wanted = wanted_of(beside)
    with errors_for_the_user(None if cohort.manifest is None else EXIT_STOPPED):
        folders = cohort.folders(inputs, outputs, index=index)
        shard = shard_of(cohort.shard, os.environ) if cohort.manifest else Shard()
        check_show_patient(show_patient, wanted)
        keep_scores = any(one.needs_scores for one in wanted)
        chosen = options.library_options(server, scan, method, transfer, keep_scores=keep_scores)
        with Segmenter(server.url, model, chosen) as segmenter, progress_bar("scans", quiet) as progress:
            told = set[str]()

            def on_result(outcome: Outcome, number: int, total: int) -> None:
                progress(number, total)
                if outcome.status == "failed" or (outcome.status == "not tried" and outcome.error not in told):
                    say(f"{outcome.case}: {outcome.error}")
                    told.add(outcome.error)

            if folders is not None:
                segment = partial(segment_folder, segmenter, *folders, index=index)
            else:
                assert cohort.manifest is not None, "without folders there is a manifest"
                redo = Redo(cohort.retry_failed, cohort.overwrite)
                segment = partial(segment_manifest, segmenter, cohort.manifest, cohort.place, shard=shard, redo=redo)
            result = segment(beside=wanted, show_patient=show_patient, on_result=on_result)
        for line in left_out_in_words(result.left_out):
            say(line)
        where = f"see {outputs / SUMMARY_CSV}" if outputs else f"shard {shard} ({shard.by}) of {cohort.manifest}"
        tell(f"{_in_words(result)}; {where}")
    raise typer.Exit(result.exit_code)


def _in_words(result: BatchResult) -> str:
    """How many cases ended in which way; what did not happen to any is named only where it is expected."""
    counts = Counter(outcome.status for outcome in result.outcomes)
    left_out = sum(1 + one.others for one in result.left_out)
    rest = f", {counts['not tried']} not tried" if counts["not tried"] else ""
    rest += f", {left_out} left out" if left_out else ""
    return f"{counts['done']} segmented, {counts['found']} found finished, {counts['failed']} failed{rest}"
