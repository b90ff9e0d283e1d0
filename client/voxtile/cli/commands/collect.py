"""`voxtile collect`: one table of what all shards of a manifest have done."""

from __future__ import annotations

from typing import Annotated

import typer

from voxtile.batch.cohort.collect import RESULTS_CSV, in_words
from voxtile.batch.cohort.joining import join_shards
from voxtile.cli.console import errors_for_the_user, say, tell


def collect(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="The folder for masks, as given with --out; or its address.")
    ],
) -> None:
    """Join what the shards of voxtile batch --manifest have recorded into PLACE/results.csv and PLACE/results.jsonl.

    Exit code 0: every case has its mask; 1: some failed; 75: some were not tried yet, run their shards again.
    """
    with errors_for_the_user():
        collected = join_shards(place)
        if collected.cut_off:
            say(f"{collected.cut_off} lines were cut off, as by a process that was killed; their cases are done again")
        if len(collected.builds) > 1:
            found = "; ".join(f"{count} by {build}" for build, count in collected.builds.items())
            say(
                f"the masks are of several builds: {found}; to have them of one, name it, as --model NAME@VERSION, "
                "and run all shards again"
            )
        tell(f"{', '.join(in_words(collected.counts, collected.unknown))}; see {place.rstrip('/')}/{RESULTS_CSV}")
    raise typer.Exit(collected.exit_code)
