"""The address of a PACS is read as it is meant or refused, and what messages call it leads back to nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.waiting import in_time
from voxtile.errors import InputError
from voxtile.pacs.access import Access, authorization_of, tls_context, token_of
from voxtile.pacs.address import NodeAddress, Wanted, WebAddress, is_uid, parse_source, parse_target
from voxtile.pacs.reach import connected
from voxtile.triton.connection import ConnectionConfig, TlsConfig, connect

BASE = "https://pacs.example/a/dicom-web"
VARIABLE = "VOXTILE_FROM_TOKEN"


@pytest.mark.parametrize(
    ("text", "base", "name"),
    [
        (f"{BASE}/studies/1.2", BASE, "https://pacs.example"),
        (f"{BASE}/studies/1.2/", BASE, "https://pacs.example"),
        (f"{BASE}/studies/1.2/metadata", BASE, "https://pacs.example"),
        ("HTTP://localhost:8042/dicom-web/studies/1.2", "http://localhost:8042/dicom-web", "http://localhost:8042"),
        ("http://[::1]:80/studies/1.2", "http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_study_by_dicomweb(text: str, base: str, name: str) -> None:
    address, wanted = parse_source(text)
    assert isinstance(address, WebAddress)
    assert (address.base, address.name, wanted) == (base, name, Wanted("1.2"))


def test_a_series_by_dicomweb() -> None:
    for given in (parse_source(f"{BASE}/studies/1.2/series/1.3"), parse_source(f"{BASE}/studies/1.2", None, "1.3")):
        assert given[1] == Wanted("1.2", "1.3")
    assert parse_source(BASE, "1.2", "1.3") == parse_source(f"{BASE}/studies/1.2/series/1.3", None, "1.3")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ORTHANC@localhost:4242", NodeAddress("ORTHANC", "localhost", 4242)),
        ("dicom://A B@10.0.0.1:104", NodeAddress("A B", "10.0.0.1", 104)),
        ("dicoms://A@[::1]:2762", NodeAddress("A", "::1", 2762, tls=True)),
    ],
)
def test_a_node(text: str, address: NodeAddress) -> None:
    assert parse_source(text, "1.2", "1.3") == (address, Wanted("1.2", "1.3"))
    assert parse_target(text) == address


def test_where_objects_are_stored() -> None:
    for text in (BASE, f"{BASE}/", f"{BASE}/studies", f"{BASE}/studies/"):
        address = parse_target(text)
        assert isinstance(address, WebAddress)
        assert address.base == BASE


@pytest.mark.parametrize(
    "text",
    [
        "", "pacs", "pacs:104", "A@b", "A@b:0", "A@b:70000", "@b:104", "A" * 17 + "@b:104", "ä@b:104", "A@b@c:104",
        "ftp://pacs/studies/9.8.7", "https://", "https:///studies/9.8.7", "https://b:0/studies/9.8.7",
        "https://b:x/studies/9.8.7", f"{BASE}/studies/9.8.7?key=SECRET", f"{BASE}/studies/9.8.7#SECRET",
        "https://me:SECRET@b/studies/9.8.7", "https://SECRET@b/studies/9.8.7", f"{BASE}/studies/SECRET",
        f"{BASE}/studies/9.8.7/series", f"{BASE}/studies/9.8.7/series/SECRET", f"{BASE}/studies/9.8.7/rendered",
        f"{BASE}/studies/9.8.7/series/9.8.7/instances/9.8.7", f"{BASE}/SECRET/studies/..", f"{BASE}/studies/9.8.7 9",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    for parse in (parse_source, parse_target):
        with pytest.raises(InputError) as caught:
            parse(text)
        said = str(caught.value)
        assert "expected" in said
        assert not any(what in said for what in ("SECRET", "9.8.7", "\n"))


def test_what_is_meant_must_be_said_once() -> None:
    for text, study, series in (
        (BASE, None, None),
        ("A@b:104", None, "1.3"),
        ("A@b:104", "nonsense", None),
        ("A@b:104", "1.2", "3"),
        (f"{BASE}/studies/1.2", "1.2", None),
        (f"{BASE}/studies/1.2/series/1.3", None, "1.4"),
    ):
        with pytest.raises(InputError):
            parse_source(text, study, series)
    with pytest.raises(InputError, match="end it before /studies"):
        parse_target(f"{BASE}/studies/1.2")


def test_a_uid_is_no_number_of_a_series() -> None:
    assert is_uid("1.2.840.1")
    assert not any(map(is_uid, ("3", "3:2", "1.2:2", "", "1..2", "1." + "2" * 63)))


# Tokens and TLS ---------------------------------------------------------------------------------------------


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert token_of(None, VARIABLE) is None
    monkeypatch.setenv(VARIABLE, "of-the-environment")
    assert token_of(None, VARIABLE) == "of-the-environment"
    file = tmp_path / "token"
    file.write_text("abc\n")
    assert token_of(file, VARIABLE) == "abc"
    assert (authorization_of("abc"), authorization_of("Basic abc")) == ("Bearer abc", "Basic abc")
    assert "abc" not in repr(Access("abc"))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"SECRET\nSECRET\n", b"SECRET\xff", "SECRÉT".encode(), b"SEC\0RET", b"SEC" * 30_000],
    ids=range(7),
)
def test_what_is_no_token(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError, match="expected a token") as caught:
        token_of(tmp_path / "token", VARIABLE)
    assert "SEC" not in str(caught.value)
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot be read"):
            token_of(place, VARIABLE)


def test_a_token_is_not_sent_where_it_can_be_read() -> None:
    for text in ("http://pacs.example/dicom-web", "A@pacs.example:104"):
        with pytest.raises(InputError, match="token"), connected(parse_target(text), Access("SECRET")):
            pass
    for text in (BASE, "http://localhost/dicom-web", "http://127.0.0.1/dicom-web"):
        with connected(parse_target(text), Access("SECRET")):
            pass


def test_files_for_tls_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for tls in (
        TlsConfig(tmp_path / "no.pem"),
        TlsConfig(tmp_path / "none"),
        TlsConfig(None, tmp_path / "no.pem", tmp_path / "no.pem"),
        TlsConfig(None, tmp_path / "none", tmp_path / "none"),
    ):
        with pytest.raises(InputError, match="as PEM"):
            tls_context(tls)
    os.mkfifo(tmp_path / "pipe")
    for tls in (TlsConfig(tmp_path / "pipe"), TlsConfig(None, tmp_path / "no.pem", tmp_path / "pipe")):
        with in_time(), pytest.raises(InputError, match="expected PEM in a plain file, found a pipe"):
            tls_context(tls)
        with in_time(), pytest.raises(InputError, match="expected PEM in a plain file, found a pipe"):
            connect("127.0.0.1:9", ConnectionConfig(tls))


def test_a_title_of_ones_own() -> None:
    for title in ("", "A" * 17, "Ä", "A\n"):
        with pytest.raises(InputError, match="--aet"), connected(parse_target("A@b:104"), Access(aet=title)):
            pass
