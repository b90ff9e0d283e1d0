"""Segments one shard of a manifest: not what is finished, and what has failed only if it is asked for.

Knows nothing of tiles, gRPC or engines that start shards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.batch.cases import CaseFiles
from voxtile.batch.cohort.journal import LOST_SERVERS, Journal, Line, checksums
from voxtile.batch.cohort.manifest import read_manifest
from voxtile.batch.cohort.remote_place import RemotePlace
from voxtile.batch.cohort.remote_scans import Remote, remote
from voxtile.batch.cohort.shard import Shard
from voxtile.batch.finishing import Rules, judge
from voxtile.batch.place import HERE, Place
from voxtile.batch.record import CLAIM, Claim, Records, claim_folder
from voxtile.batch.run import BatchResult, Making, OnResult, options_in_words, segment_cases
from voxtile.batch.summary import EXIT_SERVERS_FAILED, Outcome, exit_code
from voxtile.errors import NoResponseError
from voxtile.outputs.base import Output
from voxtile.places.address import Address, path_or_address
from voxtile.segmenter import Segmenter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Redo:
    """What is done again of what earlier runs have done.

    Attributes:
        failed: cases that failed.
        everything: every case; files of other makers that have the name of a mask are replaced.
    """

    failed: bool = False
    everything: bool = False


def segment_manifest(
    segmenter: Segmenter,
    manifest: str | os.PathLike[str],
    place: str | os.PathLike[str],
    *,
    shard: Shard | None = None,
    redo: Redo | None = None,
    beside: Sequence[Output] = (),
    show_patient: bool = False,
    ahead: int = 1,
    on_result: OnResult | None = None,
) -> BatchResult:
    """Segments the cases of one shard of a manifest, and appends a line to the shard's record for each.

    Args:
        segmenter: what segments; it must keep scores where an output needs them.
        manifest: the table of cases; a file or an address.
        place: the folder for masks and records, here or at an address; the other shards have the same.
        shard: which of the cases; None for all.
        redo: what is done again; None for what has changed alone.
        beside: what else to write for each case, beside its mask and under its name.
        show_patient: whether outputs may name the patient.
        ahead: how many scans are read ahead; see `segment_folder`.
        on_result: called as on_result(outcome, number, total) after each case.

    Raises:
        InputError: the manifest cannot be used. Raised before any work, as are the next two.
        OutputError: `place` cannot be used, or another process works on this shard; or, at the end, a line cannot be
            written.
        ServerUnavailable: what lies at addresses cannot be looked at; or, at the end, a line cannot be written there.
        VoxtileError: the model cannot have an output of `beside`.
    """
    redo, shard = redo or Redo(), shard or Shard()
    for output in beside:
        output.check_model(segmenter.card)
    given, channels = segmenter.options.given, segmenter.card.input_channels
    with remote() as elsewhere:
        folder, kept, records = _opened(path_or_address(place), elsewhere, shard)
        listed = read_manifest(path_or_address(manifest), folder, channels, beside, given, elsewhere)
        own = shard.of(listed.cases)
        kept.begin([case.name for case in own])
        said = options_in_words(segmenter)
        claim = claim_folder(folder, segmenter.transport.model, said, take_over=True, records=records, place=kept)
        kept.take(folder / CLAIM)
        if claim.is_mixed:
            _log.warning(
                "%s: masks there may be of several models, builds or options; voxtile collect tells which. To go on "
                "with one version of a model, name it: --model NAME@VERSION",
                place,
            )
        with Journal(folder, shard, listed, claim) as journal:
            rules = Rules(by_name=True, overwrite=redo.everything)
            judged = []
            for case in own:
                known = judge(case, beside, claim, rules)
                if known is None and not (redo.failed or redo.everything):
                    known = _failed_before(case, journal.earlier.get(case.name), claim)
                judged.append((case, known))
            journal.settle({case.name: known for case, known in judged if known is not None})
            elsewhere.store.lost = NoResponseError  # from now on it ends a run that can go on later
            making = Making(beside, claim, show_patient, in_words=elsewhere.in_words, rules=rules)
            outcomes = segment_cases(segmenter, judged, making, journal, ahead, on_result)
    lost = any(outcome.error_kind in LOST_SERVERS for outcome in outcomes)  # perhaps in the last case
    return BatchResult(tuple(outcomes), EXIT_SERVERS_FAILED if lost else exit_code(outcomes, scans_left_out=False))


def _opened(place: Path | Address, elsewhere: Remote, shard: Shard) -> tuple[Path, Place, Records | None]:
    """The folder in which files are written, what keeps them, and their records where these are not in the folder."""
    if isinstance(place, Path):
        return place, HERE, None
    made = RemotePlace(place, elsewhere, shard)
    return made.folder, made, made.records


def _failed_before(case: CaseFiles, line: Line | None, claim: Claim) -> Outcome | None:
    """The outcome of a case that failed in an earlier run; None where it did not, or where something has changed."""
    if line is None or line.status != "failed":
        return None
    if line.made_with != claim.digest(case.options) or line.scan_sha256 != checksums(case):
        _log.warning("%s: its scan, the model or an option has changed since it failed; it is tried again", case.name)
        return None
    return Outcome(case.name, "failed", line.seconds.total, line.error, line.ml, line.error_kind)
