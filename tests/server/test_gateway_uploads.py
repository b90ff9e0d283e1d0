"""Uploads: the bytes of each file whatever the pieces they come in, and nothing but files of our own names."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.uploads import MOST_TEXT, Form, take_files, take_form

BOUNDARY = b"----between"
FILES = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4)


def request(pieces: list[bytes], kind: bytes) -> Request:
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}, receive)


def taken(body: bytes, cuts: list[int], kind: bytes, most: int = 10_000) -> list[tuple[str, bytes]]:
    places = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[first:last] for first, last in itertools.pairwise(places)]
    with tempfile.TemporaryDirectory() as folder:
        files = asyncio.run(take_files(request(pieces, kind), Path(folder), most, 5))
        assert sorted(files) == sorted(Path(folder).iterdir())
        return [(file.name, file.read_bytes()) for file in files]


def form(files: list[bytes]) -> bytes:
    """A form with a field that is no file, and files under names that lead elsewhere."""
    parts = [b'Content-Disposition: form-data; name="note"\r\n\r\nnothing']
    parts += [
        b'Content-Disposition: form-data; name="f"; filename="../../DOE^JOHN.nii.gz"\r\n'
        b"Content-Type: application/gzip\r\n\r\n" + content
        for content in files
    ]
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"--" + BOUNDARY + b"--\r\n"


FORM = b"multipart/form-data; boundary=" + BOUNDARY


@settings(deadline=None)
@given(FILES, st.lists(st.integers(0, 900), max_size=12))
def test_a_form_gives_each_file_in_its_order_however_it_is_cut(files: list[bytes], cuts: list[int]) -> None:
    found = taken(form(files), cuts, FORM)
    assert found == [(f"channel-{number}", content) for number, content in enumerate(files, 1)]


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_a_body_without_a_form_is_one_file(body: bytes, cuts: list[int]) -> None:
    assert taken(body, cuts, b"application/octet-stream") == [("scan", body)]


@settings(deadline=None)
@given(FILES, st.data())
def test_a_form_that_is_cut_off_or_damaged_is_refused(files: list[bytes], data: st.DataObject) -> None:
    whole = form(files)
    kept = data.draw(st.integers(0, len(whole) - 5))
    with pytest.raises(HttpFailure) as caught:
        taken(whole[:kept], [kept // 2], FORM)
    assert caught.value.status == 422


@pytest.mark.parametrize(("size", "allowed"), [(100, True), (101, False)])
def test_the_limit_is_exact_for_bodies_that_do_not_tell_their_size(size: int, allowed: bool) -> None:
    if allowed:
        assert taken(bytes(size), [30, 60], b"", most=100) == [("scan", bytes(size))]
        return
    with pytest.raises(HttpFailure) as caught:
        taken(bytes(size), [30, 60], b"", most=100)
    assert caught.value.status == 413


def test_more_files_than_channels_can_be_are_refused() -> None:
    with pytest.raises(HttpFailure, match="at most 64 files"):
        taken(form([b"x"] * 65), [], FORM, most=100_000)


def taken_form(body: bytes, cuts: list[int], kind: bytes) -> tuple[list[tuple[str, str, bytes]], dict[str, str], int]:
    """The files of a form as field, name and content; its other fields; and the bytes that were counted."""
    places = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[first:last] for first, last in itertools.pairwise(places)]
    counted: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        form = asyncio.run(take_form(request(pieces, kind), Path(folder), 10 * MOST_TEXT, 5, counted.append))
        found = [(file.field, file.name, file.path.read_bytes()) for file in form.files]
        assert {file.path.parent for file in form.files} <= {Path(folder)}
    return found, form.texts, sum(counted)


@settings(deadline=None)
@given(FILES, st.lists(st.integers(0, 900), max_size=12))
def test_a_form_has_its_fields_and_the_names_of_its_files(files: list[bytes], cuts: list[int]) -> None:
    body = form(files)
    found, texts, counted = taken_form(body, cuts, FORM)
    assert found == [("f", "../../DOE^JOHN.nii.gz", content) for content in files]
    assert texts == {"note": "nothing"}
    assert counted == len(body)


def test_a_form_without_files_may_come_in_either_way_or_not_at_all() -> None:
    assert taken_form(b"params=%7B%7D&password=%C3%B6", [3], b"application/x-www-form-urlencoded")[:2] == (
        [],
        {"params": "{}", "password": "ö"},
    )
    assert taken_form(b"", [], b"")[:2] == (Form().files, Form().texts)


@pytest.mark.parametrize("cuts", [[], list(range(900))])
def test_files_that_are_not_wanted_are_refused_before_any_is_written(cuts: list[int]) -> None:
    body = form([b"a scan"])
    pieces = [body[first:last] for first, last in itertools.pairwise([0, *cuts[1:], len(body)])]
    with pytest.raises(HttpFailure, match="expected a form without files") as caught:
        asyncio.run(take_form(request(pieces, FORM), None, MOST_TEXT, 5))
    assert caught.value.status == 422
    assert asyncio.run(take_form(request([form([])], FORM), None, MOST_TEXT, 5)).texts == {"note": "nothing"}


@pytest.mark.parametrize("where", ["value", "header"])
def test_a_form_is_bounded_beside_its_files(where: str) -> None:
    long = b"x" * (MOST_TEXT + 1)
    head = b'Content-Disposition: form-data; name="note"' + (b"; also=" + long if where == "header" else b"")
    part = head + b"\r\n\r\n" + (long if where == "value" else b"")
    body = b"--" + BOUNDARY + b"\r\n" + part + b"\r\n--" + BOUNDARY + b"--\r\n"
    with pytest.raises(HttpFailure) as caught:
        taken_form(body, list(range(0, len(body), 65536)), FORM)
    assert caught.value.status in (413, 422)


def test_an_upload_of_a_byte_now_and_then_is_given_up(tmp_path: Path) -> None:
    """It would keep a place for ever, and a few of them all places."""
    sent = itertools.count(1)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)  # far below the timeout
        assert next(sent) < 1000
        return {"type": "http.request", "body": b"1", "more_body": True}

    slow = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HttpFailure, match="the upload is too slow: expected 10,000 bytes a second") as raised:
        asyncio.run(take_files(slow, tmp_path, 10_000, 0.2))
    assert raised.value.status == 408
