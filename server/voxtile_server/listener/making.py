"""Makes the objects that a rule asks for about a series, whole or not at all, in the spool.

Knows nothing of where they go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile.asked import with_asked
from voxtile.dicom_case import CaseOutputs, segment_series
from voxtile.errors import InputError, VoxtileError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.options import Options
from voxtile.outputs.dicom.write import check_kinds
from voxtile.segmenter import Segmenter
from voxtile.triton.connection import ConnectionConfig
from voxtile_server.listener.series import Given, Series
from voxtile_server.listener.settings import Rule
from voxtile_server.listener.spool import Spool, read_json, sync_folder, write_json

MADE = "made.json"


class Stopped(Exception):
    """The listener ends."""


class Changed(Exception):
    """Objects came meanwhile."""


@dataclass(frozen=True)
class Made:
    """What was made of a series.

    Attributes:
        given: the objects of which it was made.
        rule: the fingerprint of the rule by which it was made.
        model: the model and its version.
        seconds: those of each step.
        warnings: what a user should know of it.
        failures: what could not be made, and why.
        files: the objects, by their kinds.
    """

    given: Given
    rule: str
    model: str
    seconds: Mapping[str, float]
    warnings: Sequence[str]
    failures: Sequence[str]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Maker:
    """Segments series by Triton.

    Attributes:
        urls: HOST:PORT of the servers.
        connection: how to reach them.
        spool: where series lie.
        max_ram_mib: memory for one series; None for no limit.
        stopping: set when the listener ends.
    """

    urls: tuple[str, ...]
    connection: ConnectionConfig
    spool: Spool
    max_ram_mib: float | None
    stopping: threading.Event

    def make(self, series: Series, rule: Rule, given: Given) -> Made:
        """Makes what a rule asks for, and puts it into the series' folder in place of what was made before.

        Args:
            series: the series.
            rule: the rule.
            given: the objects that it was found to have.

        Raises:
            Changed: it has other objects by now.
            VoxtileError: the series cannot be segmented.
            OSError: the disk does not take what is written.
            Stopped: the listener ends.
        """
        with self._work(series) as work:
            if series.copy_to(work / "in") != given:
                raise Changed
            outputs = CaseOutputs(work / "result", rule.kinds, rule.seg)
            showing = contextlib.nullcontext(self._check_stopping)
            with (
                segmenter_of(rule, self.urls, self.connection, self.max_ram_mib) as segmenter,
                _without_place(work / "in"),
            ):
                done = segment_series(segmenter, work / "in", outputs, showing=showing)
            report = done.report
            facts = {
                "digest": given.digest,
                "instances": given.instances,
                "rule": rule.fingerprint,
                "model": f"{report.model}, version {report.version}",
                "seconds": {name: round(value, 3) for name, value in report.seconds.model_dump().items()},
                "warnings": [*report.changes, *report.warnings],
                "failures": list(done.failures),
                "files": {kind: file.name for kind, file in done.objects.items() if file.exists()},
            }
            write_json(work / "result" / MADE, facts)
            sync_folder(work / "result")
            shutil.rmtree(series.result, ignore_errors=True)
            os.replace(work / "result", series.result)
            sync_folder(series.folder)
        made = made_of(series)
        assert made is not None, "it was written"
        return made

    def _check_stopping(self, *_: int) -> None:
        """Stops the work between two tiles."""
        if self.stopping.is_set():
            raise Stopped

    @contextlib.contextmanager
    def _work(self, series: Series) -> Iterator[Path]:
        folder = self.spool.work / series.name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def segmenter_of(
    rule: Rule, urls: tuple[str, ...], connection: ConnectionConfig, max_ram_mib: float | None
) -> Segmenter:
    """What segments a rule's series.

    Raises:
        InputError: the rule's options do not fit the model, or the model wants several series.
        VoxtileError: the model cannot be used.
    """
    choice = SeriesChoice(gaps=rule.gaps, tilt=rule.tilt)
    options = Options(connection=connection, max_ram_mib=max_ram_mib, dicom=choice)
    segmenter = Segmenter(urls, rule.model, with_asked(options, rule.options))
    count = len(segmenter.card.input_channels)
    if count != 1:
        segmenter.close()
        raise InputError(
            f"model {rule.model!r}: expected one channel, found {count}; use voxtile dicom with one --series a channel"
        )
    return segmenter


def check_rule(rule: Rule, urls: tuple[str, ...], connection: ConnectionConfig, max_ram_mib: float | None) -> None:
    """Checks that a rule's model can be used as the rule says.

    Raises:
        VoxtileError: it cannot.
    """
    check_kinds(rule.kinds)
    with segmenter_of(rule, urls, connection, max_ram_mib) as segmenter:
        CaseOutputs(Path(), rule.kinds, rule.seg).check_model(segmenter.card)


def made_of(series: Series) -> Made | None:
    """What was made of a series and is still there; None for nothing."""
    facts: Any = read_json(series.result / MADE)
    if facts is None:
        return None
    return Made(
        Given(facts["digest"], tuple(facts["instances"])),
        facts["rule"],
        facts["model"],
        facts["seconds"],
        facts["warnings"],
        facts["failures"],
        {kind: series.result / name for kind, name in facts["files"].items()},
    )


@contextlib.contextmanager
def _without_place(folder: Path) -> Iterator[None]:
    """Leaves the folder out of what an error says: it is gone by the time that somebody reads it."""
    try:
        yield
    except VoxtileError as error:
        raise type(error)(str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the series")) from None
