"""Writes the table of a cohort where its masks are: in a folder here, or in one at an address.

Knows nothing of what stands in the table.
"""

from __future__ import annotations

import os

from voxtile.batch.cohort.collect import RESULTS_CSV, RESULTS_JSON, Collected, collect, write_collected
from voxtile.batch.cohort.journal import read_lines
from voxtile.batch.cohort.remote_place import RemotePlace
from voxtile.batch.cohort.remote_scans import remote
from voxtile.places.address import path_or_address


def join_shards(place: str | os.PathLike[str]) -> Collected:
    """Joins what all shards have recorded into results.csv and results.jsonl.

    Args:
        place: the folder for masks, here or at an address.

    Raises:
        InputError: no shard has worked there.
        OutputError: the lines cannot be read, or the table cannot be written.
        ServerUnavailable: nobody answers at the address.
    """
    where = path_or_address(place)
    with remote() as elsewhere:
        if not isinstance(where, os.PathLike):
            kept = RemotePlace(where, elsewhere)
            kept.begin([])
            kept.fetch([RESULTS_CSV, RESULTS_JSON])
            kept.records.fetch(list(read_lines(kept.folder)[0]))
            collected = collect(kept.folder, kept.found.__contains__, kept.records)
            write_collected(collected, kept.folder)
            for name in (RESULTS_JSON, RESULTS_CSV):
                kept.take(kept.folder / name)
            return collected
    collected = collect(where)
    write_collected(collected, where)
    return collected
