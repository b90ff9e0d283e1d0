"""`voxtile dicom` from and into a PACS: all is checked before any work, and what is not stored is told."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.commands import refused, run
from tests.support.in_memory import InMemoryTransport
from tests.support.orthanc import orthanc, rest, upload
from tests.support.web_pacs import Answer, Call, WebPacs, found, parts, web_pacs

MODEL = ("--model", "phantom", "--url", "memory:1", "-q")
CANARY = "CANARYVALUE"
CARD = made.card_for(["liver"])
OBJECTS = series.slices(
    *made.scan(), PatientName=f"{CANARY}^Egg", PatientID=CANARY, AccessionNumber=CANARY, StudyDescription=CANARY
)
STUDY, SERIES = OBJECTS[0].StudyInstanceUID, OBJECTS[0].SeriesInstanceUID


def network(tiles: Any) -> Any:
    value = tiles[:, :1]
    return np.concatenate([np.full_like(value, 50.0), np.where(value > 100, 100.0, 0.0)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(CARD, network))


@pytest.fixture(autouse=True)
def _spools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path_factory.mktemp("spools")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert not list(place.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    series.saved(OBJECTS, tmp_path / "in")
    return tmp_path


def pacs_with(folder: Path, posted: Callable[[Call], Answer] = lambda _: Answer(500)) -> Callable[[Call], Answer]:
    """A PACS that has the series, has no other object, and answers what is stored by `posted`."""
    files = [file.read_bytes() for file in sorted((folder / "in").iterdir())]

    def answer(call: Call) -> Answer:
        if call.method == "POST":
            return posted(call)
        if "SOPInstanceUID" in call.path:
            return Answer(204)
        if "/series/" in call.path:
            return parts(files)
        return found(t0020000E=SERIES, t00201209=len(files))

    return answer


def taken(call: Call) -> Answer:
    """STOW-RS takes all."""
    start = call.body.index(b"DICM") - 128
    one = dcmread(io.BytesIO(call.body[start:]), stop_before_pixels=True)
    item = {
        "00081150": {"vr": "UI", "Value": [one.SOPClassUID]},
        "00081155": {"vr": "UI", "Value": [one.SOPInstanceUID]},
    }
    return Answer(body=json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode())


def address(pacs: WebPacs) -> str:
    return f"{pacs.web}/studies/{STUDY}/series/{SERIES}"


def test_from_a_pacs_and_into_it(folder: Path) -> None:
    assert run("dicom", folder / "in", folder / "there", *MODEL).exit_code == 0
    with web_pacs(pacs_with(folder, taken)) as pacs:
        result = run("dicom", folder / "out", "--from", address(pacs), "--to", pacs.web, "--sr", *MODEL)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (folder / "out").iterdir()} == {"seg.dcm", "sr.dcm"}
    ours, there = (dcmread(folder / place / "seg.dcm") for place in ("out", "there"))
    assert ours.PixelData == there.PixelData
    assert ours.SOPInstanceUID == there.SOPInstanceUID  # so that it is there once, however often it is made
    bodies = [call.body for call in pacs.calls if call.method == "POST"]
    for name, body in zip(("seg.dcm", "sr.dcm"), bodies, strict=True):
        assert (folder / "out" / name).read_bytes() in body


def test_a_study_and_the_series_that_is_chosen(folder: Path) -> None:
    with web_pacs(pacs_with(folder)) as pacs:
        for more in ((pacs.web, "--study", STUDY), (f"{pacs.web}/studies/{STUDY}",)):
            result = run("dicom", folder / "s.dcm", "--series", SERIES, *MODEL, "--from", *more)
            assert result.exit_code == 0, result.output
        asked = {call.path for call in pacs.calls if "/series/" in call.path}
    assert asked == {f"/dicom-web/studies/{STUDY}/series/{SERIES}"}


def test_what_is_not_stored_is_told_and_kept(folder: Path) -> None:
    with web_pacs(pacs_with(folder, lambda _: Answer(409, CANARY.encode()))) as pacs:
        result = run("dicom", folder / "in", folder / "out", "--to", pacs.web, "--json", folder / "r.json", *MODEL)
    assert result.exit_code == 2
    assert "refused (409 Conflict); seg.dcm is not stored, 0 of 1 are; the SEG is written to" in result.stderr
    assert (folder / "out" / "seg.dcm").exists()
    assert not any(what in result.stderr + (folder / "r.json").read_text() for what in (CANARY, STUDY, "dicom-web"))


def test_an_object_of_before_is_not_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "sr.dcm").write_bytes((folder / "in" / "0000.dcm").read_bytes())

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("voxtile.outputs.dicom.write.report_of", fail)
    with web_pacs(pacs_with(folder, taken)) as pacs:
        result = run("dicom", folder / "in", folder / "out", "--sr", "--to", pacs.web, *MODEL)
    assert result.exit_code == 2
    (body,) = (call.body for call in pacs.calls if call.method == "POST")
    assert (folder / "out" / "seg.dcm").read_bytes() in body


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out"], "expected IN and OUT, or --from and OUT"),
        (["in", "in", "out"], "expected IN and OUT"),
        (["in", "out", "--from", "{web}/studies/1.2"], "expected IN or --from, found both"),
        (["in", "out", "--study", "1.2"], "expected --from with --study"),
        (["out", "--from", "{web}"], "name it with --study"),
        (["out", "--from", "nonsense"], "expected the address of a PACS"),
        (["in", "out", "--to", "{web}/studies/1.2"], "end it before /studies"),
        (["in", "out", "--to", "A@localhost:104", "--to-token-file", "token"], "DIMSE has none"),
        (["in", "out", "--to", "http://pacs.example/dicom-web", "--to-token-file", "token"], "expected https://"),
        (["out", "--from", "{web}/studies/1.2", "--from-token-file", "none"], "a token cannot be read"),
        (["in", "out", "--to", "{web}", "--pacs-ca", "token"], "as PEM"),
        (["in", "out", "--to", "{web}", "--pacs-cert", "token"], "found only the certificate"),
        (["in", "out", "--to", "{web}", "--to-token-file", "token"], "refuses access (401 Unauthorized)"),
    ],
)
def test_everything_is_checked_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "token").write_text("SECRET\n")
    with web_pacs(lambda _: Answer(401)) as pacs:
        line = refused(run("dicom", *(one.format(web=pacs.web) for one in arguments), *MODEL), folder, "in", "token")
    assert said in line
    assert "SECRET" not in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["token"], "expected a folder or a name that ends in .dcm, found a file"),
        (["none/s.dcm"], "make it first"),
        (["s.dcm", "--sr"], "expected a folder for --sr"),
        (["out", "--json", "r.txt"], "ends in .json"),
        (["out", "--preview", "p.jpg"], "ends in .png"),
        (["out", "--probabilities", "p.npz"], "not an nnU-Net model"),
    ],
)
def test_no_study_is_fetched_for_what_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "token").write_text("kept")
    with web_pacs(pacs_with(folder, taken)) as pacs:
        line = refused(run("dicom", *arguments, "--from", address(pacs), *MODEL), folder, "in", "token")
        assert not pacs.calls
    assert said in line


@pytest.mark.system
def test_the_loop_with_orthanc(folder: Path) -> None:
    assert run("dicom", folder / "in", folder / "there", *MODEL).exit_code == 0
    with orthanc(folder / "orthanc") as pacs:
        upload(pacs, folder / "in")
        sources = (f"{pacs.web}/studies/{STUDY}/series/{SERIES}",), (pacs.node, "--study", STUDY, "--series", SERIES)
        for number, (source, target) in enumerate(zip(sources, (pacs.node, pacs.web), strict=True)):
            out = folder / f"out{number}"
            result = run("dicom", out, "--from", *source, "--to", target, "--sr", "--sc", "--rtstruct", *MODEL)
            assert result.exit_code == 0, result.output
            assert dcmread(out / "seg.dcm").PixelData == dcmread(folder / "there" / "seg.dcm").PixelData
            assert ("has it already" in result.stderr) == (number == 1)
        kinds = [rest(pacs, f"/series/{one}")["MainDicomTags"]["Modality"] for one in rest(pacs, "/series")]
        assert sorted(kinds) == ["CT", "OT", "RTSTRUCT", "SEG", "SR"]
        assert len(rest(pacs, "/studies")) == 1
        assert len(rest(pacs, "/instances")) == len(OBJECTS) + 4
