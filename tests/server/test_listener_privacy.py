"""A series full of canaries, sent to the listener, comes back with its patient, and leaves no canary anywhere else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support import dicom_series as series
from tests.support.canaries import canaries, marked
from tests.support.listeners import Lines, archive, in_process, send, transport, until, write_settings
from tests.support.node_pacs import node_pacs
from tests.support.phantoms import affine_of, sampled
from voxtile.io.dicom.objects.quiet import quietly

SHAPE = (16, 17, 6)


def paths(folder: Path) -> list[str]:
    """All below a folder, where files may go meanwhile."""
    return [os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)]


def test_audit_logs_names_and_the_spool(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())
    affine = affine_of(SHAPE, (2.0, 2.0, 4.0), "LPS")
    objects = marked(series.slices(np.rint(sampled(SHAPE, affine)).astype(np.int16), affine))
    with quietly():  # what the sender says is no concern of the listener
        cut = [one.copy() for one in [*objects[:2], *objects[3:]]]
        for one in cut:
            one.add_new("SeriesInstanceUID", "UI", "1.2.7719.4242")
            one.add_new("Modality", "CS", "CT")
    caplog.set_level(logging.DEBUG)
    pacs = archive()
    with (
        node_pacs(pacs) as address,
        in_process(write_settings(tmp_path, address, keep="hours = 0")) as port,
    ):
        names = set()
        for given, outcome in ((objects, "sent"), (cut, "refused")):
            send(port, given)
            names |= set(paths(tmp_path / "spool"))
            Lines(tmp_path).wait(outcome)
        until(lambda: not [path for path in paths(tmp_path / "spool") if path.endswith(".dcm")])
    assert canaries(str(pacs.stored[0].PatientName))
    said = capfd.readouterr()
    left = [Path(path).read_bytes() for path in paths(tmp_path / "spool") if Path(path).is_file()]
    for text in (*names, said.out, said.err, caplog.text, *left):
        assert canaries(text) == set(), text
