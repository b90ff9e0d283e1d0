"""Whatever a PACS answers by DICOMweb, a series comes whole or not at all, and only what is stored is called so."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid

from tests.support.dicom_series import saved, slices
from tests.support.web_pacs import Answer, Call, WebPacs, found, parts, web_pacs
from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.pacs.access import Access
from voxtile.pacs.address import parse_source, parse_target
from voxtile.pacs.fetch import Fetched, fetched
from voxtile.pacs.store import check_reachable, store

QUICK = Access(pauses_s=(0.0, 0.0))
CANARY = "CANARYVALUE"
OBJECTS = slices(np.zeros((6, 5, 4), np.int16), np.eye(4), PatientName=CANARY)
STUDY, SERIES = OBJECTS[0].StudyInstanceUID, OBJECTS[0].SeriesInstanceUID


def encoded(one: FileDataset) -> bytes:
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


BYTES = [encoded(one) for one in OBJECTS]


@pytest.fixture(autouse=True)
def _spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "spools"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert not list(place.iterdir())


def counted(number: Any) -> Answer:
    return found(t0020000E=SERIES, t00201209=number)


def series(answer: Answer, count: Answer | None = None) -> Callable[[Call], Answer]:
    """A PACS that answers a query with a count, and WADO-RS with `answer`."""
    return lambda call: answer if "/series/" in call.path else count or counted(len(BYTES))


def fetch(pacs: WebPacs, access: Access = QUICK) -> tuple[Fetched, list[bytes]]:
    with fetched(*parse_source(f"{pacs.web}/studies/{STUDY}/series/{SERIES}"), access) as came:
        return came, [file.read_bytes() for file in sorted(came.folder.iterdir())]


def refusal(answer: Callable[[Call], Answer], access: Access = QUICK) -> VoxtileError:
    """What is said of a series that cannot be fetched."""
    with web_pacs(answer) as pacs, pytest.raises(VoxtileError) as caught:
        fetch(pacs, access)
    said = str(caught.value)
    assert said.startswith("http://127.0.0.1:")
    assert not any(what in said for what in ("\n", CANARY, STUDY, SERIES, "dicom-web"))
    assert caught.value.exit_code == 2
    return caught.value


# Fetching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-1, None])
def test_a_series_comes_as_it_is_sent(length: int | None) -> None:
    with web_pacs(series(parts(BYTES, length=length))) as pacs:
        came, files = fetch(pacs, Access("abc", pauses_s=()))
    assert files == BYTES
    assert came.warnings == ()
    assert not came.folder.exists()
    assert {call.headers["Authorization"] for call in pacs.calls} == {"Bearer abc"}
    assert {call.headers["Host"] for call in pacs.calls} == {pacs.web.split("/")[2]}
    (wado,) = (call for call in pacs.calls if "/series/" in call.path)
    assert "transfer-syntax=*" in wado.headers["Accept"]


def test_slices_that_are_missing() -> None:
    for answer in (parts(BYTES[:-1]), parts([*BYTES[:-1], BYTES[0]]), parts([])):
        error = refusal(series(answer))
        assert isinstance(error, InputError)
    assert "expected the 4 objects" in str(refusal(series(parts(BYTES[1:]))))
    assert "found 3" in str(refusal(series(parts(BYTES[1:]))))


def test_a_series_that_grows_meanwhile() -> None:
    counts = iter([3, 4])
    error = refusal(lambda call: parts(BYTES[:3]) if "/series/" in call.path else counted(next(counts)))
    assert "still being received" in str(error)


def test_a_pacs_that_does_not_count_is_named() -> None:
    for count in (found(t0020000E=SERIES), Answer(404), Answer(501), counted("many")):
        with web_pacs(series(parts(BYTES), count)) as pacs:
            came, files = fetch(pacs)
        assert files == BYTES
        assert "does not say how many objects" in came.warnings[0]


@pytest.mark.parametrize("cut", [1, 2, 4, 300, 1000])
@pytest.mark.parametrize("length", ["none", "whole", "of what comes"])
def test_an_answer_that_is_cut_off(cut: int, length: str) -> None:
    whole = parts(BYTES)
    said = {"none": None, "whole": len(whole.body), "of what comes": -1}[length]
    # The mark at the end is what is asked for, not the line end behind it.
    body = whole.body[: len(whole.body) - 2 - cut]
    error = refusal(series(Answer(200, body, whole.kind, said), counted(1)))
    assert isinstance(error, (ServerUnavailable, InputError))


def test_compressed_pixels_that_are_cut_off() -> None:
    """They look whole to whoever reads them."""
    objects = slices(np.zeros((6, 5, 4), np.int16), np.eye(4), StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
    for one in objects:
        one.compress(RLELossless, generate_instance_uid=False)
    whole = parts([encoded(one) for one in objects])
    end = whole.body.rindex(b"\r\n--")
    for last in (1, 8, 30):
        answer = Answer(200, whole.body[: end - last], whole.kind, None)
        assert isinstance(refusal(series(answer)), ServerUnavailable)


def test_objects_of_others() -> None:
    (other,) = slices(np.zeros((6, 5, 1), np.int16), np.eye(4), PatientName=CANARY, StudyInstanceUID=STUDY)
    assert "found others among them" in str(refusal(series(parts([*BYTES, encoded(other)]))))


def test_answers_that_are_none() -> None:
    page = Answer(200, f"<html>{CANARY}</html>".encode(), "text/html")
    for answer in (
        page, Answer(200, CANARY.encode(), "multipart/related"), parts([CANARY.encode()]), Answer(200, b"", "nonsense"),
        Answer(200, BYTES[0], "application/dicom", None), Answer(302, headers={"Location": f"/{CANARY}"}),
        Answer(302, headers={"Location": f"http:///{CANARY}"}), parts([BYTES[0][:200]]),
    ):  # fmt: skip
        refusal(lambda call, answer=answer: answer if "/series/" in call.path or CANARY in call.path else counted(4))
    for count in (page, Answer(200, b"{"), Answer(200, b"3"), Answer(200, b'[{"0020000E": 3}]'), Answer(200, b"[3]")):
        refusal(series(parts(BYTES), count))


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (401, AccessError, 1), (403, AccessError, 1), (404, InputError, 1), (410, InputError, 1), (418, InputError, 1),
        (429, ServerUnavailable, 3), (500, ServerUnavailable, 3), (503, ServerUnavailable, 3), (599, InputError, 1),
    ],
)  # fmt: skip
def test_what_is_refused(status: int, kind: type[VoxtileError], tries: int) -> None:
    asked = []

    def answer(call: Call) -> Answer:
        if "/series/" not in call.path:
            return counted(4)
        asked.append(call)
        return Answer(status, f"{CANARY} {STUDY}".encode())

    error = refusal(answer)
    assert type(error) is kind
    assert str(status) in str(error)
    assert len(asked) == tries


def test_what_passes_is_tried_again() -> None:
    answers = iter([Answer(503), parts(BYTES[:2], end=b""), parts(BYTES)])
    with web_pacs(lambda call: next(answers) if "/series/" in call.path else counted(4)) as pacs:
        assert fetch(pacs)[1] == BYTES


# Storing ----------------------------------------------------------------------------------------------------


def told(one: FileDataset, failure: int | None = None) -> bytes:
    """What STOW-RS answers."""
    item = {
        "00081150": {"vr": "UI", "Value": [one.SOPClassUID]},
        "00081155": {"vr": "UI", "Value": [one.SOPInstanceUID]},
    }
    if failure is None:
        return json.dumps({"00081198": {"vr": "SQ"}, "00081199": {"vr": "SQ", "Value": [item]}}).encode()
    return json.dumps(
        {"00081198": {"vr": "SQ", "Value": [{**item, "00081197": {"vr": "US", "Value": [failure]}}]}}
    ).encode()


def stored(tmp_path: Path, posted: Callable[[Call], Answer], there: bool = False) -> tuple[Any, list[Call]]:
    """Stores an object; the answer to a query says whether it is `there`."""
    files = sorted(saved(OBJECTS[:1], tmp_path / generate_uid()).iterdir())
    query = found(t00080018=OBJECTS[0].SOPInstanceUID) if there else Answer(204)
    with web_pacs(lambda call: posted(call) if call.method == "POST" else query) as pacs:
        try:
            return store(files, parse_target(pacs.web), QUICK), pacs.calls
        except VoxtileError as error:
            said = str(error)
            assert not any(what in said for what in ("\n", CANARY, STUDY, OBJECTS[0].SOPInstanceUID, "dicom-web"))
            assert "0000.dcm is not stored, 0 of 1 are" in said
            return error, pacs.calls


def test_an_object_is_stored_as_it_is(tmp_path: Path) -> None:
    kept, calls = stored(tmp_path, lambda _: Answer(body=told(OBJECTS[0])))
    assert (len(kept.stored), len(kept.there)) == (1, 0)
    assert [call.method for call in calls] == ["GET", "POST"]
    assert BYTES[0] in calls[1].body


def test_a_large_object_is_sent_with_its_length(tmp_path: Path) -> None:
    (one,) = slices(np.zeros((900, 900, 1), np.int16), np.eye(4))
    file = saved([one], tmp_path / "large") / "0000.dcm"
    with web_pacs(lambda call: Answer(body=told(one)) if call.method == "POST" else Answer(204)) as pacs:
        assert store([file], parse_target(pacs.web), QUICK).stored == (file,)
    assert file.read_bytes() in pacs.calls[1].body


def test_one_that_is_there_is_not_sent(tmp_path: Path) -> None:
    kept, calls = stored(tmp_path, lambda _: Answer(500), there=True)
    assert (len(kept.stored), len(kept.there)) == (0, 1)
    assert [call.method for call in calls] == ["GET"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(body=told(OBJECTS[0], 0x0110)), "failure reason 0110"),
        (Answer(202, told(OBJECTS[0], 0x0122)), "takes no objects of this class"),
        (Answer(409, told(OBJECTS[0], 0x0124)), "does not let you store"),
        (Answer(409, CANARY.encode()), "409"),
        (Answer(413), "larger than it takes"),
        (Answer(200), "expected word that the object is stored"),
        (Answer(200, told(OBJECTS[1])), "expected word that the object is stored"),
        (Answer(200, b"", "text/html"), "expected word that the object is stored"),
        (Answer(302, headers={"Location": "/dicom-web/studies"}), "expected"),
        (Answer(404), "404"),
    ],
)
def test_what_is_not_stored_is_not_called_stored(tmp_path: Path, answer: Answer, says: str) -> None:
    error, calls = stored(tmp_path, lambda _: answer)
    assert isinstance(error, OutputError)
    assert says in str(error)
    assert sum(call.method == "POST" for call in calls) == 1


def test_storing_is_tried_again(tmp_path: Path) -> None:
    answers = iter([Answer(503), Answer(body=told(OBJECTS[0], 0xA700)), Answer(body=told(OBJECTS[0]))])
    kept, calls = stored(tmp_path, lambda _: next(answers))
    assert len(kept.stored) == 1
    posts = [call for call in calls if call.method == "POST"]
    assert len(posts) == 3
    assert all(BYTES[0] in call.body for call in posts)  # whole each time
    error, _ = stored(tmp_path, lambda _: Answer(503))
    assert isinstance(error, ServerUnavailable)


def test_files_that_cannot_be_stored(tmp_path: Path) -> None:
    good = saved(OBJECTS[:1], tmp_path / "good") / "0000.dcm"
    (tmp_path / "text").write_text(CANARY)
    (tmp_path / "cut").write_bytes(BYTES[0][:150])
    for bad in (tmp_path / "text", tmp_path / "cut", tmp_path / "none", tmp_path):
        with web_pacs(lambda _: Answer(500)) as pacs, pytest.raises(InputError) as caught:
            store([good, bad], parse_target(pacs.web), QUICK)
        assert str(bad) in str(caught.value)
        assert CANARY not in str(caught.value)
        assert not pacs.calls


def deflated(size: int) -> bytes:
    """An object with `size` bytes of nothing, packed by Deflate into next to none."""
    (one,) = slices(np.zeros((6, 5, 1), np.int16), np.eye(4), StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    one.PixelData = bytes(size)
    return encoded(one)


def test_a_deflated_object_is_unpacked_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.io.dicom.objects.headers.LARGEST_INFLATED", 1 << 20)
    small, large = deflated(1 << 10), deflated(1 << 21)
    with web_pacs(series(parts([small]), counted(1))) as pacs:
        assert fetch(pacs)[1] == [small]
    with web_pacs(series(parts([large]), counted(1))) as pacs:  # of which only the header is unpacked
        assert fetch(pacs)[1] == [large]
    (tmp_path / "bomb.dcm").write_bytes(large)
    with web_pacs(lambda _: Answer(500)) as pacs, pytest.raises(InputError, match=r"bomb\.dcm: expected 1 MiB at most"):
        store([tmp_path / "bomb.dcm"], parse_target(pacs.web), QUICK)
    assert not pacs.calls


def test_reach_is_checked_before_work() -> None:
    for answer, kind in ((Answer(401), AccessError), (Answer(503), ServerUnavailable)):
        with web_pacs(lambda _, answer=answer: answer) as pacs, pytest.raises(kind):
            check_reachable(parse_target(pacs.web), QUICK)
    for answer in (Answer(204), Answer(200, b"[]"), Answer(404)):  # some take objects and offer no query
        with web_pacs(lambda _, answer=answer: answer) as pacs:
            check_reachable(parse_target(pacs.web), QUICK)


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    answers = iter([Answer(503), parts(BYTES)])
    with web_pacs(lambda call: next(answers) if "/series/" in call.path else counted(4)) as pacs:
        fetch(pacs, Access("SECRET", pauses_s=(0.0,)))
    stored(tmp_path, lambda _: Answer(409, told(OBJECTS[0], 0x0110)))
    assert not any(what in caplog.text for what in (STUDY, SERIES, CANARY, "SECRET", OBJECTS[0].SOPInstanceUID))
