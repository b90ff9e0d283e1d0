"""DICOM through the gateway: the objects of `voxtile dicom`, in the form that is asked for; no series, no answer."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.commands import run
from tests.support.gateways import MODEL, Called, gateway, gateway_here, put
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from tests.support.served_processes import eventually
from voxtile.errors import ModelError
from voxtile.job import Cancellation
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.gateway.dicom import archives
from voxtile_server.gateway.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/how-to/gateway.md"
CANARY = "CANARYVALUE"
VOXELS, AFFINE = made.scan()
SAID = {"PatientName": f"{CANARY}^Egg", "PatientID": CANARY, "AccessionNumber": CANARY, "StudyDescription": CANARY}
OBJECTS = series.slices(VOXELS, AFFINE, SeriesNumber=2, **SAID)
SAME_STUDY = {"StudyInstanceUID": OBJECTS[0].StudyInstanceUID, "FrameOfReferenceUID": OBJECTS[0].FrameOfReferenceUID}
OTHER = series.slices(VOXELS[::-1, :, ::-1], AFFINE, SeriesNumber=3, **SAME_STUDY, **SAID)

ALONE = "application/dicom"
ZIPPED = ("-H", "Content-Type: application/zip")
DICOM = "/v1/models/one/dicom"
TWO = "/v1/models/two/dicom"


def bytes_of(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


FILES = [bytes_of(one) for one in OBJECTS]
OTHERS = [bytes_of(one) for one in OTHER]


def packed(files: Mapping[str, bytes] | list[bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of files by their names, or of objects in an order of its own."""
    named = files if isinstance(files, Mapping) else {f"S/{7 * n % 97:03d}": one for n, one in enumerate(files)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in named.items():
            archive.writestr(name, content)
    return stream.getvalue()


def related(files: list[bytes], kind: str = ALONE, end: bytes = b"--") -> bytes:
    """As DICOMweb's clients send it, with an empty line before the first boundary."""
    head = f"\r\n--b\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + one for one in files) + b"\r\n--b" + end


RELATED = ("-H", f'Content-Type: multipart/related; type="{ALONE}"; boundary=b')


# A gateway in this process, in front of networks in memory -------------------------------------------------------


class Network:
    """Labels by brightness: the first channel's bright voxels are 1, those of the second that are brighter are 2."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()
        self.go.set()

    def __call__(self, tiles: NDArray[Any]) -> NDArray[Any]:
        self.began.set()
        assert self.go.wait(60)
        values = np.where(tiles > 100, tiles, 0.0)
        return np.concatenate([np.full_like(values[:, :1], 50.0), values], axis=1).astype(np.float32)


NETWORK = Network()


def transport(name: str) -> InMemoryTransport:
    if name not in ("one", "two"):
        raise ModelError(f"model {name!r} is not offered")
    channels = {"one": ("c0",), "two": ("c0", "c1")}[name]
    names = ["background", "liver", "kidney_left"][: len(channels) + 1]
    labels = [{"name": label, "value": value} for value, label in enumerate(names)]
    output = {"kind": "logits", "dtype": "fp32", "scores": len(labels)}
    return InMemoryTransport(card_of(name=name, channels=channels, labels=labels, output=output), NETWORK)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Called]:
    folder = tmp_path_factory.mktemp("spool")
    limits: dict[str, Any] = {"max_upload_mib": 3, "upload_timeout_s": 2, "waiting": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile_server.gateway.models.connect_transport", lambda _, name, *__: transport(name))
        with gateway_here(Settings(("memory:1",), folder=folder, **limits)) as running:
            yield running


def sent(here: Called, body: bytes, path: str, *words: str) -> tuple[int, dict[str, str], bytes]:
    """Sends a body to the gateway."""
    command = ["-X", "POST", "--data-binary", "@-", *words]
    full = ["curl", "-sS", "-H", "Expect:", "-D", "-", *command, f"{here.url}{path}"]
    answer = subprocess.run(full, capture_output=True, check=True, input=body).stdout
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), content


def command(folder: Path, *words: object, name: str = "one") -> Dataset:
    """The SEG of `voxtile dicom`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.segmenter.connect_transport", lambda _, name, *__: transport(name))
        result = run("dicom", *words, folder / "seg.dcm", "--model", name, "--url", "memory:1", "-q")
    assert result.exit_code == 0, result.output
    return pydicom.dcmread(folder / "seg.dcm")


def timeless(dataset: Dataset) -> Dataset:
    """An object without the time at which it was made."""
    for one in list(dataset):
        if one.VR in ("DA", "TM", "DT"):
            del dataset[one.tag]
        elif one.VR == "SQ":
            for item in one.value:
                timeless(item)
    return dataset


def same(found: bytes, expected: Dataset) -> bool:
    return timeless(pydicom.dcmread(io.BytesIO(found))) == timeless(expected)


def files_of_form(tmp_path: Path, files: Mapping[str, bytes]) -> list[str]:
    """What makes curl send a form."""
    words = []
    for number, (name, content) in enumerate(files.items()):
        (tmp_path / f"{number}").write_bytes(content)
        words += ["-F", f"{name}=@{tmp_path / str(number)};filename=../../{CANARY}"]
    return words


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Folders of two series of one study."""
    series.saved(OBJECTS, tmp_path / "study" / "a")
    series.saved(OTHER, tmp_path / "study" / "b")
    return tmp_path / "study"


# What comes back ------------------------------------------------------------------------------------------------


def test_the_seg_is_that_of_the_command_however_the_series_is_sent(here: Called, study: Path, tmp_path: Path) -> None:
    expected = command(tmp_path, study / "a")
    assert np.asarray(expected.pixel_array).any()
    bodies: dict[str, tuple[bytes, tuple[str, ...]]] = {
        "zip": (packed(FILES), ZIPPED),
        "stored zip, no type": (packed(FILES, zipfile.ZIP_STORED), ("-H", "Content-Type:")),
        "zip as curl sends it": (packed(FILES), ()),
        "zip with other files": (packed({"README": b"!", "x/": b"", **{f"d/{n}": f for n, f in enumerate(FILES)}}), ()),
        "names that lead elsewhere": (packed({f"../../{CANARY}{n}": one for n, one in enumerate(FILES)}), ZIPPED),
        "related": (related(FILES[::-1]), RELATED),
        "related, types of parts": (related(FILES, f"{ALONE}; transfer-syntax=1.2.840.10008.1.2.1"), RELATED),
        "in pieces": (packed(FILES), (*ZIPPED, "-H", "Transfer-Encoding: chunked")),
    }
    for name, (body, words) in bodies.items():
        status, headers, content = sent(here, body, DICOM, *words)
        assert (status, headers.get("content-type")) == (200, ALONE), (name, content[:300])
        assert same(content, expected), name
        report = headers["voxtile-report"]
        assert json.loads(report)["model"] == "one"
        assert CANARY.lower() not in report
    assert not (here.folder.parent / CANARY).exists()


def test_a_form_has_a_file_for_each_object(here: Called, study: Path, tmp_path: Path) -> None:
    expected = command(tmp_path, study / "a")
    objects = {f"f{number}": one for number, one in enumerate(FILES)}
    status, _, content = here.curl(DICOM, *files_of_form(tmp_path, objects))
    assert status == 200, content
    assert same(content, expected)
    assert same(here.curl(DICOM, *files_of_form(tmp_path, {"f": packed(FILES)}))[2], expected)


def test_one_slice_is_what_it_is_to_the_command(here: Called, tmp_path: Path) -> None:
    expected = command(tmp_path, series.saved(OBJECTS[4:5], tmp_path / "one"))
    for body in (FILES[4], packed(FILES[4:5]), related(FILES[4:5])):
        words = RELATED if body.startswith(b"\r\n") else ()
        assert same(sent(here, body, DICOM, *words)[2], expected)


def test_an_object_of_many_frames_is_a_body_of_its_own(here: Called, tmp_path: Path) -> None:
    whole = made.enhanced(series.slices(VOXELS, AFFINE, "MR", **SAID))
    (tmp_path / "whole.dcm").write_bytes(bytes_of(whole))
    expected = command(tmp_path, tmp_path / "whole.dcm")
    status, _, content = sent(here, bytes_of(whole), DICOM, "-H", f"Content-Type: {ALONE}")
    assert status == 200, content
    assert same(content, expected)


def test_a_model_of_two_channels_takes_a_zip_for_each_or_a_study(here: Called, study: Path, tmp_path: Path) -> None:
    expected = command(tmp_path, study, "--series", 2, "--series", 3, name="two")
    turned = command(tmp_path, study, "--series", 3, "--series", 2, name="two")
    assert not same(bytes_of(expected), turned)
    both = packed({f"{n}": one for n, one in enumerate([*FILES, *OTHERS])})
    assert same(sent(here, both, f"{TWO}?series=2&series=3")[2], expected)
    assert same(sent(here, both, f"{TWO}?series=3&series=2")[2], turned)
    assert same(sent(here, related([*FILES, *OTHERS]), f"{TWO}?series=2&series=3", *RELATED)[2], expected)
    zips = [packed(FILES), packed(OTHERS)]
    for first, second in ((0, 1), (1, 0)):
        words = files_of_form(tmp_path, {"x": zips[first], "y": zips[second]})
        assert same(here.curl(TWO, *words)[2], expected if first == 0 else turned)
    mask = sent(here, both, "/v1/models/two/mask?series=2&series=3")
    assert mask[0] == 200, mask[2]


def test_options_are_those_of_the_command(here: Called, study: Path, tmp_path: Path) -> None:
    for query, words in (
        ("seg=labelmap", ("--seg", "labelmap")),
        (
            "overlap=0.25&modality=ct&description=PHAN*",
            ("--overlap", 0.25, "--modality", "ct", "--description", "phan*"),
        ),
    ):
        assert same(sent(here, packed(FILES), f"{DICOM}?{query}")[2], command(tmp_path, study / "a", *words))
    (study / "a" / "0004.dcm").unlink()
    gap = packed(FILES[:4] + FILES[5:])
    assert same(sent(here, gap, f"{DICOM}?gaps=fill")[2], command(tmp_path, study / "a", "--gaps", "fill"))
    status, headers, _ = sent(here, gap, f"{DICOM}?gaps=fill")
    assert "slice" in " ".join(json.loads(headers["voxtile-report"])["changes"])
    status, _, told = sent(here, gap, DICOM)
    assert status == 422
    assert b"gaps=fill" in told
    assert b"--gaps" not in told


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "application/zip"),
        ("application/zip", "application/zip"),
        ('application/dicom;q=0.9, multipart/related; type="application/dicom";q=0.5', "multipart/related"),
        ("multipart/*", "multipart/related"),
        ("*/*;q=0.1, multipart/related", "multipart/related"),
    ],
)
def test_several_objects_come_in_the_form_that_is_accepted(here: Called, accept: str | None, form: str) -> None:
    words = ("-H", f"Accept: {accept}") if accept else ()
    status, headers, content = sent(here, packed(FILES), f"{DICOM}?sr=true&sc=1&rtstruct=yes", *words)
    assert status == 200, content
    assert headers["content-type"].startswith(form)
    if form == "application/zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.namelist() == ["seg.dcm", "sr.dcm", "sc.dcm", "rtstruct.dcm"]
            found = [archive.read(name) for name in archive.namelist()]
    else:
        boundary = re.search(r"boundary=(\S+)", headers["content-type"])
        assert boundary
        assert int(headers["content-length"]) == len(content)
        parts = content.split(f"--{boundary[1]}".encode())
        assert (parts[0], parts[-1]) == (b"", b"--\r\n")
        found = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:-1]]
        assert all(part.startswith(b"\r\nContent-Type: application/dicom\r\n\r\n") for part in parts[1:-1])
    read = [pydicom.dcmread(io.BytesIO(one)) for one in found]
    assert [one.Modality for one in read] == ["SEG", "SR", "OT", "RTSTRUCT"]
    assert {one.PatientID for one in read} == {CANARY}


@pytest.mark.parametrize(
    ("accept", "form"),
    [("*/*", ALONE), ("application/*", ALONE), ("application/zip", "application/zip"),
     ("application/dicom;q=0, */*", "multipart/related"), ("multipart/related", "multipart/related")],
)  # fmt: skip
def test_one_object_comes_in_the_form_that_is_accepted(here: Called, accept: str, form: str) -> None:
    status, headers, _ = sent(here, packed(FILES), DICOM, "-H", f"Accept: {accept}")
    assert status == 200
    assert headers["content-type"].startswith(form)


# Jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_is_taken_watched_and_fetched(here: Called, study: Path, tmp_path: Path) -> None:
    status, headers, body = sent(here, packed(FILES), f"{DICOM}/jobs?sc=true")
    job = json.loads(body)["id"]
    assert (status, headers["location"]) == (202, f"/v1/jobs/{job}".lower())
    assert b"event: done" in here.curl(f"/v1/jobs/{job}", "-N", "-H", "Accept: text/event-stream")[2]
    told = json.loads(here.curl(f"/v1/jobs/{job}")[2])
    assert told["dicom"] == f"/v1/jobs/{job}/dicom"
    for _ in range(2):  # it is kept
        assert here.curl(told["dicom"])[1]["content-type"] == "application/zip"
    assert here.error(told["dicom"], "-H", f"Accept: {ALONE}")[0] == 406
    assert here.error(f"/v1/jobs/{job}/mask")[0] == 404
    assert here.curl(f"/v1/jobs/{job}", "-X", "DELETE")[0] == 204
    assert here.error(told["dicom"])[0] == 404


def test_events_tell_where_the_object_is(here: Called, study: Path, tmp_path: Path) -> None:
    body = sent(here, packed(FILES), DICOM, "-H", "Accept: text/event-stream")[2]
    events = [json.loads(text) for text in re.findall(r"^data: (.*)$", body.decode(), re.MULTILINE)]
    assert events[-1]["state"] == "done"
    assert same(here.curl(events[-1]["dicom"])[2], command(tmp_path, study / "a"))
    here.curl(f"/v1/jobs/{events[-1]['id']}", "-X", "DELETE")


def left(here: Called) -> list[Path]:
    """Folders of jobs."""
    (spool,) = here.folder.iterdir()
    return list(spool.iterdir())


def test_whoever_goes_away_ends_the_work_and_leaves_nothing(
    here: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, cancel = threading.Event(), Cancellation.cancel

    def tell(self: Cancellation) -> None:
        cancel(self)
        told.set()

    monkeypatch.setattr(Cancellation, "cancel", tell)
    assert eventually(lambda: not left(here))
    NETWORK.began.clear()
    NETWORK.go.clear()
    (tmp_path / "scan.zip").write_bytes(packed(FILES))
    try:
        words = ["curl", "-sS", "-X", "POST", "-T", tmp_path / "scan.zip", f"{here.url}{DICOM}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as caller:
            assert NETWORK.began.wait(60)
            running = json.loads(sent(here, packed(FILES), f"{DICOM}/jobs")[2])["id"]
            assert here.error(f"/v1/jobs/{running}/dicom")[0] == 409
            caller.kill()
        assert told.wait(60)  # before the tile has its answer
        assert here.curl(f"/v1/jobs/{running}", "-X", "DELETE")[0] == 204
    finally:
        NETWORK.go.set()
    assert eventually(lambda: not left(here))


# What is refused ------------------------------------------------------------------------------------------------


def changed(archive: bytes, at: Callable[[bytes], int], by: bytes) -> bytes:
    place = at(archive)
    return archive[:place] + by + archive[place + len(by) :]


def in_directory(field: int) -> Callable[[bytes], int]:
    """Where the list of a zip's files says something of the first of them."""
    return lambda archive: archive.index(b"PK\x01\x02") + field


def seg_alone(folder: Path) -> bytes:
    series.saved(OBJECTS, folder / "for-seg")
    command(folder, folder / "for-seg")
    return (folder / "seg.dcm").read_bytes()


BROKEN_END = dict(enumerate(FILES[:-1])) | {99: b"\0" * 100 + FILES[-1][100:]}
LAST = packed({f"{n:02}": one for n, one in BROKEN_END.items()})
DATA_OF_LAST = LAST.rindex(b"PK\x03\x04")

BAD: dict[str, tuple[bytes | Callable[[Path], bytes], tuple[str, ...], int, str]] = {
    "nothing": (b"", (), 422, "found nothing"),
    "text": (b"no scan at all", (), 422, "scan: expected a zip of a DICOM series, or a DICOM object"),
    "NIfTI": (b"\x5c\x01\0\0" + bytes(348), (), 422, "found something else"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(100), (), 422, "found something else"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(300), ("-H", "Content-Type: application/dicom"), 422, "found something else"),
    "JSON": (b"{}", ("-H", "Content-Type: application/dicom+json"), 415, "the Content-Type application/dicom+json"),
    "empty zip": (packed({}), ZIPPED, 422, "found one without files"),
    "zip of folders": (packed({"a/": b"", "a/b/": b""}), ZIPPED, 422, "found one without files"),
    "zip in a zip": (packed({"inner.zip": packed(FILES)}), ZIPPED, 422, "not looked into"),
    "zip of pictures": (packed({"a.jpg": b"\xff\xd8\xff\xe0" + bytes(300)}), ZIPPED, 422, "found none; a zip in a zip"),
    "zip cut off": (packed(FILES)[:-30], ZIPPED, 422, "cut off"),
    "zip cut to its start": (packed(FILES)[:4], ZIPPED, 422, "cut off"),
    "zip encrypted": (changed(packed(FILES), in_directory(8), b"\x01\0"), ZIPPED, 422, "is encrypted"),
    "zip by another method": (changed(packed(FILES), in_directory(10), b"\x09\0"), ZIPPED, 422, "is packed in a way"),
    "zip with a damaged slice": (
        changed(packed(FILES, zipfile.ZIP_STORED), lambda zipped: zipped.index(FILES[3]) + 2000, b"\xff\x01"),
        ZIPPED, 422, "cannot be read",
    ),
    "zip whose last slice cannot be looked at": (
        LAST[: DATA_OF_LAST + 32] + b"\xff" * 8 + LAST[DATA_OF_LAST + 40 :], ZIPPED, 422, "cannot be read",
    ),
    "zip that says less than it holds": (
        changed(packed({"a": bytes(1 << 21)}), in_directory(24), struct.pack("<L", 100)), ZIPPED, 422, "found none",
    ),
    "bomb": (packed({"a": bytes(4 << 20)}), ZIPPED, 413, "--max-upload"),
    "many bombs": (packed({f"{n}": bytes(2 << 20) for n in range(7)}), ZIPPED, 413, "--max-upload"),
    "too large": (bytes((3 << 20) + 1), ZIPPED, 413, "--max-upload"),
    "two series": (packed([*FILES, *OTHERS]), ZIPPED, 422, "say which: series="),
    "a SEG": (seg_alone, (), 422, "no slice of a scan"),
    "no boundary": (related(FILES), ("-H", RELATED[1].partition("; b")[0]), 422, "boundary"),
    "no end": (related(FILES, end=b""), RELATED, 422, "cut off"),
    "cut in a part": (related(FILES)[:-5000], RELATED, 422, "cut off"),
    "a part behind the end": (related(FILES[:-1]) + b"\r\n" + related(FILES[-1:]), RELATED, 400, "behind the closing"),
    "a part far behind the end": (
        related(FILES[:-1]) + bytes(200_000) + related(FILES[-1:]), RELATED, 400, "behind the closing",
    ),
    "a slice under a folder's name": (
        packed({**{f"{k}": one for k, one in enumerate(FILES[:-1])}, "last/": FILES[-1]}), ZIPPED, 422, "of a folder",
    ),
    "a zip in a zip": (packed([*FILES[:-1], packed(FILES[-1:])]), ZIPPED, 422, "an archive in an archive"),
    "no parts": (b"\r\n--b--", RELATED, 422, "found nothing"),
    "another boundary": (related(FILES).replace(b"--b", b"--c"), RELATED, 422, "multipart form"),
    "parts of another type": (related(FILES, "application/dicom+json"), RELATED, 415, "part 1: expected"),
    "related of another type": (
        related(FILES), ("-H", 'Content-Type: multipart/related; type="text/html"; boundary=b'), 415, "text/html",
    ),
    "another multipart": (related(FILES), ("-H", "Content-Type: multipart/mixed; boundary=b"), 415, "multipart/mixed"),
    "a part that is none": (related([*FILES, b"none"]), RELATED, 422, f"object-{len(FILES) + 1}: expected a DICOM"),
    "an empty part": (related([*FILES, b""]), RELATED, 422, "an empty file"),
    "a zip among parts": (related([*FILES, packed(FILES)]), RELATED, 422, "a zip among objects"),
    "a part cut off": (related([*FILES[:-1], FILES[-1][:-200]]), RELATED, 422, ""),
    "headers without end": (b"\r\n--b\r\nX: " + b"a" * 3_000_000, RELATED, 422, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_series_is_refused_in_one_line(here: Called, tmp_path: Path, kind: str) -> None:
    body, words, expected, said = BAD[kind]
    status, _, content = sent(here, body if isinstance(body, bytes) else body(tmp_path), DICOM, *words)
    told = json.loads(content)["error"]
    assert status == expected, told
    assert said in told
    assert "\n" not in told
    assert not any(what in told for what in (str(here.folder), CANARY, OBJECTS[0].SeriesInstanceUID))
    assert not re.search(r"(?<![\w-])--(series|gaps|tilt|seg)", told)
    assert eventually(lambda: not left(here))


@pytest.mark.parametrize(
    ("path", "words", "status", "said"),
    [
        (f"{DICOM}?seg=fractional", (), 422, "option seg"),
        (f"{DICOM}?gaps=maybe", (), 422, "option gaps"),
        (f"{DICOM}?sr=perhaps", (), 422, "option sr"),
        (f"{DICOM}?overlaps=1", (), 422, "unknown option 'overlaps'; expected one of seg, sr"),
        (f"{DICOM}?series=7", (), 422, "expected series 7"),
        (f"{DICOM}?series=2&series=3", (), 422, ""),
        ("/v1/models/nothing/dicom", (), 404, "'nothing' is not offered"),
        (DICOM, ("-H", "Accept: text/html"), 406, "application/dicom"),
        (f"{DICOM}?sr=1", ("-H", "Accept: application/dicom"), 406, "2 objects"),
        (DICOM, ("-H", 'Accept: multipart/related; type="image/png"'), 406, "image/png"),
        (f"{DICOM}/jobs?seg=1", (), 422, "option seg"),
        (TWO, (), 422, "2 channels"),
    ],
)
def test_what_cannot_be_asked_for(here: Called, path: str, words: tuple[str, ...], status: int, said: str) -> None:
    found, _, content = sent(here, packed(FILES), path, *words)
    told = json.loads(content)["error"]
    assert (found, "\n" in told) == (status, False), told
    assert said in told


def test_a_form_has_nothing_else(here: Called, tmp_path: Path) -> None:
    zips = files_of_form(tmp_path, {"f": packed(FILES)})
    assert "question mark" in here.error(DICOM, *zips, "-F", "gaps=fill")[1]
    for more, said in ((FILES[0], "expected a DICOM object, found a zip"), (b"text", "expected a DICOM object")):
        status, told = here.error(DICOM, *files_of_form(tmp_path, {"f": packed(FILES), "g": more}))
        assert status == 422
        assert said in told


def test_zips_of_very_many_files(here: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    many = packed({f"{n}": b"" for n in range(archives.MOST_OBJECTS + 1)})
    status, _, content = sent(here, many, DICOM)
    assert status == 413, content
    monkeypatch.setattr(archives, "MOST_DIRECTORY", 100)  # the list is not even read
    status, _, content = sent(here, packed(FILES), DICOM)
    assert status == 413, content


def test_a_wrong_scan_costs_no_other(here: Called, study: Path, tmp_path: Path) -> None:
    sent(here, b"junk", DICOM)
    assert same(sent(here, packed(FILES), DICOM)[2], command(tmp_path, study / "a"))


# A real one -----------------------------------------------------------------------------------------------------


def test_behind_a_process_of_its_own_and_triton(server: EmbeddedServer, tmp_path: Path) -> None:
    """Compressed slices, a token, the lines of the page; nothing is logged (the helper checks it)."""
    for one in (objects := series.slices(VOXELS, AFFINE, **SAID)):
        one.compress(RLELossless, generate_instance_uid=False)
    scan = series.saved(objects, tmp_path / "scan")
    (tmp_path / "series.zip").write_bytes(packed([file.read_bytes() for file in scan.iterdir()]))
    words = ("--model", MODEL, "--url", server.grpc_url, "-q", "--sr")
    assert run("dicom", scan, tmp_path / "there", *words).exit_code == 0
    (tmp_path / "tokens").write_text("secret\n")
    with gateway(tmp_path / "run", "--url", server.grpc_url, "--token-file", str(tmp_path / "tokens")) as one:
        path = f"/v1/models/{MODEL}/dicom"
        assert one.error(path, *put(tmp_path / "series.zip"))[0] == 401
        known = ("-H", "Authorization: Bearer secret")
        described = json.loads(one.curl("/openapi.json", *known)[2])
        assert {"gaps", "series", "sr"} <= {
            each["name"] for each in described["paths"]["/v1/models/{name}/dicom"]["post"]["parameters"]
        }
        lines = re.findall(r"^curl .*/dicom.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(lines) == 3
        for line in lines:
            here_line = line.replace("http://localhost:8080", one.url).replace("brain-unet", MODEL)
            here_line = here_line.replace("curl ", 'curl -sS -H "Authorization: Bearer secret" ')
            (tmp_path / "slices").mkdir(exist_ok=True)
            series.saved(objects, tmp_path / "slices")
            subprocess.run(["bash", "-ec", here_line], cwd=tmp_path, check=True)
    expected = [pydicom.dcmread(tmp_path / "there" / name) for name in ("seg.dcm", "sr.dcm")]
    assert same((tmp_path / "seg.dcm").read_bytes(), expected[0])
    with zipfile.ZipFile(tmp_path / "found.zip") as archive:
        assert [same(archive.read(name), one) for name, one in zip(archive.namelist(), expected, strict=True)] == [
            True
        ] * 2
