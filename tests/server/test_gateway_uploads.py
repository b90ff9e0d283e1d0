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
from voxtile_server.gateway.uploads import take_files

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
