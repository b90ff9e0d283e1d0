"""Addresses: what is one, and each thing that can go wrong there as one line that says what to do."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import run as run_command
from tests.support.in_memory_commands import save_scan, transport
from tests.support.s3_server import Bucket, S3Server, s3_server
from voxtile import AccessError, InputError, OutputError, Segmenter, ServerUnavailable, VoxtileError
from voxtile.batch.cohort.run import segment_manifest
from voxtile.errors import MissingExtraError
from voxtile.places.address import Address, is_address, parse_address
from voxtile.places.spool import spool
from voxtile.places.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return s3.bucket(f"test-{abs(hash(request.node.nodeid)):x}")


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, Answer]]]:
    """The address of a folder of the web, and what is answered otherwise at some of its paths."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers: dict[str, Answer] = {}
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type, misc]

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            answers.get(self.path, lambda _: super(Handler, self).do_GET())(self)

        def do_HEAD(self) -> None:
            answers.get(f"HEAD {self.path}", lambda _: super(Handler, self).do_HEAD())(self)

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", answers
    running.shutdown()
    thread.join()
    running.server_close()


def number(status: int) -> Answer:
    return lambda handler: handler.send_error(status)


def cut_off(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Half of what is promised."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(bytes(500))
    handler.close_connection = True


def segment(manifest: object, place: object) -> tuple[dict[str, str], int]:
    with Segmenter(transport=transport()) as segmenter:
        result = segment_manifest(segmenter, str(manifest), str(place))
    return {one.case: one.error or one.status for one in result.outcomes}, result.exit_code


def refusal(manifest: object, place: object, kind: type[VoxtileError] = InputError) -> str:
    """The one line that a run ends with before any work."""
    with pytest.raises(kind) as caught:
        segment(manifest, place)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value), "no name of the spool"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "scheme", "path", "query"),
    [
        ("s3://bucket", "s3", "bucket", ""),
        ("S3://bucket/a/b?c#d/", "s3", "bucket/a/b?c#d", ""),
        ("gs://b/ü 1.nii.gz", "gs", "b/ü 1.nii.gz", ""),
        ("https://host:8443/a/b.nii?X-Amz-Signature=secret#x", "https", "host:8443/a/b.nii", "X-Amz-Signature=secret"),
    ],
)
def test_an_address_is_read(text: str, scheme: str, path: str, query: str) -> None:
    assert is_address(text)
    address = parse_address(text)
    assert address == Address(scheme, path, query)
    assert "secret" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/a", "ftp://host/a"),
        ("ftp://me:secret@host/a", "'ftp://…'"),
        ("file:///scans", "name a path"),
        ("://x", "begins with s3://"),
        ("s3:/bucket/a", "begins with s3://"),
        ("s3://", "and then a name"),
        ("s3:///key", "and then a name"),
        ("https://me:secret@host/a", "~/.netrc"),
        ("s3://key:secret@bucket/a", "environment"),
        ("s3://bucket/a\nb", "and then a name"),
    ],
)
def test_what_is_no_address_is_one_line_without_a_secret(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(text)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "s3://b/a.nii.gz", "-o", "m.nii.gz"),
        ("segment", "a.nii.gz", "-o", "s3://b/m.nii.gz"),
        ("segment", "a.nii.gz", "-o", "m.nii.gz", "--json", "gs://b/r.json"),
        ("batch", "s3://b/scans", "masks"),
        ("batch", "scans", "s3://b/masks"),
        ("batch", "scans", "https://host/masks?signature=secret"),
        ("batch", "--manifest", "c.csv", "--out", "s3:/b/masks"),
        ("batch", "--manifest", "s3:/b/c.csv", "--out", "masks"),
        ("dicom", "s3://b/study", "found"),
        ("manifest", "s3:/b/scans", "-o", "new.csv"),
        ("collect", "s3:/b/masks"),
    ],
)
def test_an_address_is_never_taken_for_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())
    save_scan(tmp_path / "scans" / "a.nii.gz")
    save_scan(tmp_path / "a.nii.gz")
    (tmp_path / "c.csv").write_text("case,any\na,a.nii.gz\n")
    before = sorted(tmp_path.rglob("*"))
    to = () if arguments[0] in ("manifest", "collect") else ("--model", "phantom", "--url", "memory:1")
    done = run_command(*arguments, *to)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert "address" in done.stderr
    assert "secret" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_names_stay_in_their_bucket() -> None:
    folder = parse_address("s3://bucket/a/b")
    assert str(parse_address("s3://bucket/a//b") / "c/./d.nii") == "s3://bucket/a//b/c/d.nii"
    assert str(folder / "c/../d.nii") == "s3://bucket/a/b/d.nii"
    assert str(folder / "../x.nii") == "s3://bucket/a/x.nii"
    assert (folder / "c.nii").below(folder.parent) == "b/c.nii"
    assert parse_address("s3://bucket/ab").below(parse_address("s3://bucket/a")) is None
    for name in ("../../../other/x.nii", "../../.."):
        with pytest.raises(InputError, match="stays in bucket"):
            folder / name


def test_nothing_of_it_is_imported_for_paths(tmp_path: Path) -> None:
    save_scan(tmp_path / "a.nii.gz")
    (tmp_path / "cases.csv").write_text("case,any\na,a.nii.gz\n")
    program = (
        "import sys; from tests.client.test_places import segment; from pathlib import Path; "
        f"print(segment({str(tmp_path / 'cases.csv')!r}, {str(tmp_path / 'masks')!r}), "
        "[name for name in ('fsspec', 's3fs', 'aiohttp', 'botocore') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "({'a': 'done'}, 0) []"


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, address in (("s3fs", "s3://b/c.csv"), ("gcsfs", "gs://b/c.csv"), ("aiohttp", "https://b/c.csv")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            assert "pip install 'voxtile[cloud]'" in refusal(address, tmp_path / "masks", MissingExtraError)
    assert not (tmp_path / "masks").exists()


def test_the_web_is_no_place_for_masks(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case,any\n")
    asked = ("batch", "--manifest", str(tmp_path / "cases.csv"), "--out", "https://host/masks", "--model", "any")
    done = run_command(*asked)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "only read" in done.stderr, "before a server is looked for"


@pytest.mark.parametrize("name", ["/masks", "masks//x", "a/../masks"])
def test_a_place_has_one_spelling(bucket: Bucket, tmp_path: Path, name: str) -> None:
    (tmp_path / "cases.csv").write_text(f"case,any\na,{save_scan(tmp_path / 'a.nii.gz')}\n")
    assert "without //" in refusal(tmp_path / "cases.csv", f"{bucket}/{name}", OutputError)
    assert not bucket.content()


def test_buckets_and_objects_that_are_not_there(bucket: Bucket, tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    bucket.put("in/a.nii.gz", scan)
    (tmp_path / "cases.csv").write_text("case,any\na,a.nii.gz\n")
    masks = tmp_path / "masks"
    assert "found none of that name" in refusal("s3://no-such-bucket/cases.csv", masks)
    assert "expected a file, found nothing" in refusal(f"{bucket}/none.csv", masks)
    assert "found a folder" in refusal(f"{bucket}/in", masks)
    assert "found none of that name" in refusal(tmp_path / "cases.csv", "s3://no-such-bucket/masks", OutputError)
    rows = {
        "none.nii.gz": "row 2: s3://",
        "in": "expected the file of a scan",
        "in/a.hdr": "one of several",
        "in/a.dcm": "expected the file of a scan",
        "../../../x/a.nii.gz": "stays in",
        "ftp://host/a.nii.gz": "begins with s3://",
        "": "empty cell",
    }
    for cell, said in rows.items():
        bucket.put("cases.csv", f"case,any\na,{cell}\nb,in/a.nii.gz\n".encode())
        assert said in refusal(f"{bucket}/cases.csv", masks), cell
    bucket.put("cases.csv", f"case,any\na,in/a.nii.gz\nb,{bucket}/in/a.nii.gz\n".encode())
    assert "row 3: " in refusal(f"{bucket}/cases.csv", masks), "one scan twice"
    bucket.put("cases.csv", b"case,any\na,in/a.nii.gz\n")
    assert "would replace a scan of row 2" in refusal(f"{bucket}/cases.csv", f"{bucket}/in")
    assert not masks.exists()


def test_who_may_not_is_told_how_to_sign_in(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("cases.csv", b"case,any\na,a.nii.gz\n")
    bucket.put("a.nii.gz", save_scan(tmp_path / "a.nii.gz"))
    bucket.refuse("s3:PutObject", "masks/*")
    said = refusal(f"{bucket}/cases.csv", f"{bucket}/masks", OutputError)
    assert "access is denied" in said
    assert "AWS_PROFILE" in said
    assert not bucket.content("masks/")
    bucket.refuse("s3:GetObject", "a.nii.gz")
    statuses, code = segment(f"{bucket}/cases.csv", tmp_path / "masks")
    assert (code, "access is denied" in statuses["a"]) == (1, True), statuses
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "FSSPEC_S3_ANON" in refusal(f"{bucket}/cases.csv", tmp_path / "masks", AccessError)


def test_nobody_answers(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "AWS_ENDPOINT_URL_S3" in refusal("s3://bucket/cases.csv", tmp_path / "masks", ServerUnavailable)
    assert "found none" in refusal(f"http://127.0.0.1:{port}/cases.csv", tmp_path / "masks", ServerUnavailable)


def test_scans_of_the_web_are_those_of_the_folder(web: tuple[str, dict[str, Answer]], tmp_path: Path) -> None:
    address, answers = web
    for number_, name in enumerate(("a", "ü 1", "c")):
        save_scan(tmp_path / "web" / f"{name}.nii.gz", number_)
    text = "case,any\na,a.nii.gz\nb,ü%201.nii.gz\nc,c.nii.gz?signature=SECRET\n"
    (tmp_path / "web" / "cases.csv").write_text(text.replace("c.nii.gz?", f"{address}/c.nii.gz?"))
    (tmp_path / "web" / "here.csv").write_text(text.replace("%20", " ").partition("?")[0] + "\n")
    answers["HEAD /a.nii.gz"] = number(405)  # some servers know no HEAD
    for status in ("done", "found"):
        statuses, code = segment(f"{address}/cases.csv", tmp_path / "masks")
        assert (set(statuses.values()), code) == ({status}, 0), statuses
    segment(tmp_path / "web" / "here.csv", tmp_path / "here")
    for name in "abc":
        assert (tmp_path / "masks" / f"{name}.nii.gz").read_bytes() == (
            tmp_path / "here" / f"{name}.nii.gz"
        ).read_bytes()
    everything = b"".join(file.read_bytes() for file in (tmp_path / "masks").rglob("*") if file.is_file())
    assert b"SECRET" not in everything, "a signature is not repeated"


def test_downloads_that_are_cut_off_or_refused(web: tuple[str, dict[str, Answer]], tmp_path: Path) -> None:
    address, answers = web
    save_scan(tmp_path / "web" / "a.nii.gz")
    (tmp_path / "web" / "cases.csv").write_text(
        "case,any\na,a.nii.gz?key=SECRET\n".replace("a.nii.gz", f"{address}/a.nii.gz")
    )
    cases = f"{address}/cases.csv"
    path = "/a.nii.gz?key=SECRET"
    answers[path] = answers[f"HEAD {path}"] = cut_off
    statuses, code = segment(cases, tmp_path / "masks")
    assert (code, "cut off" in statuses["a"], "SECRET" in statuses["a"]) == (1, True, False), statuses
    for status, said, kind in (
        (404, "found nothing", InputError),
        (403, "access is denied", InputError),
        (401, "~/.netrc", AccessError),
        (500, "too busy (500)", ServerUnavailable),
        (418, "418", InputError),
    ):
        answers[path] = answers[f"HEAD {path}"] = number(status)
        told = refusal(cases, tmp_path / "masks", kind)
        assert (said in told, "SECRET" in told) == (True, False), told


def test_a_scan_that_changes_while_it_is_fetched_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a", b"one")
    store, address = Store(), parse_address(f"{bucket}/a")
    real = store.look_up

    def changing(asked: Address) -> object:
        found = real(asked)
        bucket.put("a", b"two")
        return found

    monkeypatch.setattr(store, "look_up", changing)
    with spool() as place, pytest.raises(InputError, match="was changed while it was fetched"):
        store.fetch(address, place.folder / "a", place)


def test_a_spool_is_private_and_has_room_or_says_so(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a", b"one")
    store, address = Store(), parse_address(f"{bucket}/a")
    with spool() as place:
        assert place.folder.stat().st_mode & 0o777 == 0o700
        store.fetch(address, place.folder / "x" / "a", place)
        assert (place.folder / "x" / "a").read_bytes() == b"one"
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2})())
        with pytest.raises(OutputError, match="set TMPDIR"):
            store.fetch(address, place.folder / "b", place)
    assert not place.folder.exists()


def test_what_is_sent_is_compared_with_what_is_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store, address = Store(), parse_address(f"{bucket}/a")
    assert store.write(b"one", address).size == 3
    real = store.look_up

    def damaged(asked: Address) -> object:
        bucket.put("a", b"two")
        return real(asked)

    monkeypatch.setattr(store, "look_up", damaged)
    with pytest.raises(OutputError, match="expected the 3 bytes that were sent, found others"):
        store.write(b"one", address)
