"""The listener's whole loop with a real Orthanc and a real Triton: from the archive and back, whatever dies."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from pydicom import dcmread

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.listeners import Lines, a_process, until, write_settings
from tests.support.orthanc import Orthanc, free_ports, orthanc, rest, upload
from voxtile_server.embedded import EmbeddedServer

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:Exception ignored in.*<socket:pytest.PytestUnraisableExceptionWarning"),
]

SCAN = made.scan((24, 31, 20))
RULE = 'outputs = ["seg", "sr"]'


def send(pacs: Orthanc, *names: str) -> None:
    """Lets Orthanc send series to the listener, on a job of its own."""
    wanted = {"Resources": list(names), "Asynchronous": True}
    rest(pacs, "/modalities/voxtile/store", json.dumps(wanted).encode())


def by_modality(pacs: Orthanc, modality: str) -> list[str]:
    """The names that Orthanc gives to the series of a modality."""
    return [
        one for one in rest(pacs, "/series") if rest(pacs, f"/series/{one}")["MainDicomTags"]["Modality"] == modality
    ]


def stored(pacs: Orthanc, name: str) -> bytes:
    """The one object of a series, as WADO-RS gives it."""
    [instance] = rest(pacs, f"/series/{name}")["Instances"]
    one = dcmread(io.BytesIO(_get(f"{pacs.root}/instances/{instance}/file")), stop_before_pixels=True)
    path = f"/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    body = _get(pacs.web + path, Accept='multipart/related; type="application/dicom"; transfer-syntax=*')
    return body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]


def _get(url: str, **headers: str) -> bytes:
    with urlopen(Request(url, headers=headers), timeout=60) as answer:
        return bytes(answer.read())


def files(folder: Path, pattern: str) -> list[Path]:
    return list((folder / "spool" / "series").glob(f"*/{pattern}"))


def test_each_series_comes_back_once_whatever_dies(server: EmbeddedServer, tmp_path: Path) -> None:
    study = series.slices(*SCAN, "MR")
    other = series.slices(*SCAN, "MR", StudyInstanceUID=study[0].StudyInstanceUID, SeriesNumber=3)
    [port] = free_ports(1)
    settings: dict[str, Any] = {"DicomModalities": {"voxtile": ["VOXTILE", "127.0.0.1", port]}}
    with orthanc(tmp_path / "orthanc", **settings) as pacs:
        upload(pacs, series.saved([*study, *other], tmp_path / "in"))
        file = write_settings(tmp_path, pacs.web, complete='count_at = "archive"', rule=RULE)
        text = file.read_text().replace("port = 0", f"port = {port}").replace('"CT"', '"MR"')
        file.write_text(text.replace('"phantom"', '"small-unet"'))
        names, lines = by_modality(pacs, "MR"), Lines(tmp_path)
        with a_process(file, url=server.grpc_url) as listener:
            send(pacs, *names)
            until(lambda: len(files(tmp_path, "objects/*.dcm")) > 3, lines.all)
            listener.kill()  # while it receives
        with a_process(file, url=server.grpc_url) as listener:
            send(pacs, *names)
            until(lambda: files(tmp_path, "begun.json"), lines.all)
            listener.kill()  # while it segments
        with a_process(file, url=server.grpc_url) as listener:
            until(lambda: files(tmp_path, "result/made.json"), lines.all)
            listener.kill()  # while it sends
        with a_process(file, url=server.grpc_url) as listener:
            until(lambda: len({line["case"] for line in lines.of("sent")}) == 2, lines.all)
            send(pacs, *by_modality(pacs, "SEG"), *names)  # a study comes again, with what was made of it
            lines.wait("nothing new", 2)
            listener.process.terminate()
            assert listener.process.wait(60) == 0
        assert listener.errors.read_text() == ""
        for modality, name in (("SEG", "seg"), ("SR", "sr")):
            there = [stored(pacs, one) for one in by_modality(pacs, modality)]
            assert len(there) == 2
            assert {*there} == {one.read_bytes() for one in files(tmp_path, f"result/{name}.dcm")}
        assert len(rest(pacs, "/instances")) == len(study) + len(other) + 4
        assert len(rest(pacs, "/studies")) == 1
