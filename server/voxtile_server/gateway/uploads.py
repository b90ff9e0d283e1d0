"""Takes the files of a request to disk, within a limit of bytes and of time. Knows nothing of scans.

Names that a caller gives to files are not used: they may lead elsewhere, or name a patient.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from voxtile_server.gateway.failures import HttpFailure

MOST_FILES = 64
MOST_TEXT = 1 << 20
"""Bytes of a form beside its files: its other fields, and the headers of all."""

SLOWEST = 10_000
"""Bytes a second of an upload that takes longer than the timeout: one byte now and then would keep a place for ever."""

Count = Callable[[int], None]
"""Called with the bytes that have come; may refuse them."""

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would tell of damaged forms, byte by byte


@dataclass(frozen=True)
class SentFile:
    """A file of a form.

    Attributes:
        field: the name of its field.
        path: where it lies.
        name: what the caller calls it. Never a part of a path here; only its ending may be looked at.
        kind: the type that the caller says it has.
    """

    field: str
    path: Path
    name: str
    kind: str = ""


@dataclass(frozen=True)
class PartRules:
    """What the parts of a request may be.

    Attributes:
        most: files.
        what: what the files are, for messages.
        stem: how the names of the files here begin; a number follows.
        room: bytes of all that is no file: texts, and the headers of all parts.
        all_files: whether every part is a file, as in `multipart/related`.
    """

    most: int = MOST_FILES
    what: str = "one a channel"
    stem: str = "channel-"
    room: int = MOST_TEXT
    all_files: bool = False


CHANNELS = PartRules()


@dataclass(frozen=True)
class Form:
    """A form of a request.

    Attributes:
        files: its files, in order.
        texts: its other fields; of several with one name, the last.
    """

    files: list[SentFile] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class _Limited:
    """The body of a request, refused beyond a number of bytes, and given up where nothing comes, or hardly anything."""

    def __init__(self, request: Request, most: int, timeout_s: float, count: Count | None = None) -> None:
        self._request, self._most, self._timeout_s, self._count = request, most, timeout_s, count

    async def chunks(self) -> AsyncIterator[bytes]:
        declared = self._request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._most:
            raise self._too_large(int(declared))
        taken, stream, started = 0, self._request.stream().__aiter__(), time.monotonic()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), self._timeout_s)
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                text = f"the upload stopped: no byte came for {self._timeout_s:g} s; send it again"
                raise HttpFailure(408, text, {"Connection": "close"}) from None
            except ClientDisconnect:
                raise HttpFailure(499, "the caller has gone") from None
            taken += len(chunk)
            if taken > self._most:
                raise self._too_large(taken)
            self._check_pace(taken, time.monotonic() - started)
            if self._count is not None:
                self._count(len(chunk))
            yield chunk

    def _check_pace(self, taken: int, seconds: float) -> None:
        if seconds > self._timeout_s and taken < SLOWEST * seconds:
            text = f"the upload is too slow: expected {SLOWEST:,} bytes a second, found {taken / seconds:,.0f}"
            raise HttpFailure(408, f"{text}; send it from a faster network", {"Connection": "close"})

    def _too_large(self, size: int) -> HttpFailure:
        text = (
            f"expected at most {self._most:,} bytes, found {size:,} or more; the operator allows more with --max-upload"
        )
        return HttpFailure(413, text, {"Connection": "close"})


async def take_files(request: Request, folder: Path, most: int, timeout_s: float) -> list[Path]:
    """Write the body to files: the whole of it, or one file for each part with a file of a multipart form.

    Args:
        request: the request.
        folder: an empty folder for the files.
        most: bytes of the body, at most.
        timeout_s: seconds without a byte after which it is given up.

    Returns:
        The files, in the order in which they came.

    Raises:
        HttpFailure: the body is empty, too large, too slow, or no form.
    """
    body = _Limited(request, most, timeout_s).chunks()
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        form = await _parts(body, options.get(b"boundary", b""), folder)
        files = [file.path for file in form.files]
    else:
        files = [await _whole(body, folder / "scan")]
    if not files or any(file.stat().st_size == 0 for file in files):
        raise HttpFailure(422, "expected a scan in the body of the request, found none; curl -T FILE sends one")
    return files


async def take_form(
    request: Request, folder: Path | None, most: int, timeout_s: float, count: Count | None = None
) -> Form:
    """Take a form, which may have files, no files, or nothing at all; its files are written to disk.

    Args:
        request: the request.
        folder: an empty folder for the files; None to refuse files.
        most: bytes of the body, at most.
        timeout_s: seconds without a byte after which it is given up.
        count: called with the bytes of each piece.

    Raises:
        HttpFailure: the body is too large, too slow, or no form; a file in it is empty, or is not wanted.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        form = await _parts(_Limited(request, most, timeout_s, count).chunks(), options.get(b"boundary", b""), folder)
        if any(file.path.stat().st_size == 0 for file in form.files):
            raise HttpFailure(422, "expected files that hold something, found an empty one; send it again")
        return form
    body = b"".join([chunk async for chunk in _Limited(request, min(most, MOST_TEXT), timeout_s, count).chunks()])
    if kind == b"application/x-www-form-urlencoded":
        return Form(texts=dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)))
    if body:
        found = kind.decode("latin-1") or "none"
        raise HttpFailure(422, f"expected a form with the Content-Type multipart/form-data, found {found}")
    return Form()


async def take_whole(request: Request, path: Path, most: int, timeout_s: float) -> Path:
    """Writes the body, as it is, to a file; raises as `take_files` does, but not for an empty one."""
    return await _whole(_Limited(request, most, timeout_s).chunks(), path)


async def take_parts(request: Request, folder: Path, most: int, timeout_s: float, rules: PartRules) -> Form:
    """Writes the parts of a body of several to files, whatever multipart it is; raises as `take_files` does."""
    boundary = parse_options_header(request.headers.get("content-type", ""))[1].get(b"boundary", b"")
    return await _parts(_Limited(request, most, timeout_s).chunks(), boundary, folder, rules)


async def _whole(body: AsyncIterator[bytes], path: Path) -> Path:
    with path.open("wb") as file:
        async for chunk in body:
            file.write(chunk)
    return path


async def _parts(body: AsyncIterator[bytes], boundary: bytes, folder: Path | None, rules: PartRules = CHANNELS) -> Form:
    if not boundary:
        raise HttpFailure(422, "expected a boundary in the Content-Type of a multipart form, found none")
    form = _Reader(folder, rules)
    try:
        parser, behind = MultipartParser(boundary, form.callbacks()), _Behind(boundary)
        async for chunk in body:
            parser.write(chunk)
            behind.check(chunk, form.ended)
        parser.finalize()
    except ValueError as error:  # MultipartParseError is one
        raise HttpFailure(422, f"expected a multipart form, found a damaged one ({error})") from None
    finally:
        form.close()
    if not form.ended:
        raise HttpFailure(422, "expected a multipart form that ends with its boundary, found one that is cut off")
    return form.form


class _Behind:
    """Refuses a body that goes on behind its closing boundary, where the parser skips whatever comes."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"--" + boundary + b"--"
        self._tail = b""
        self._ended = False

    def check(self, chunk: bytes, ended: bool) -> None:
        """Looks at the next piece; `ended` says whether the boundary is in it or before. Raises HttpFailure."""
        if not ended:
            self._tail = (self._tail + chunk)[-len(self._mark) - 2 :]
            return
        behind = chunk
        if not self._ended:
            joined, self._ended = b"\r\n" * (not self._tail) + self._tail + chunk, True
            behind = joined.partition(b"\r\n" + self._mark)[2]
        if behind.strip():
            text = "expected nothing behind the closing boundary, found more; send all parts before it"
            raise HttpFailure(400, text, {"Connection": "close"})


class _Reader:
    """Writes the parts of a multipart form that are files, and keeps the others as texts."""

    def __init__(self, folder: Path | None, rules: PartRules = CHANNELS) -> None:
        self.form = Form()
        self.ended = False
        self._folder = folder
        self._rules = rules
        self._field, self._value, self._kind = b"", b"", b""
        self._place: dict[bytes, bytes] = {}
        self._text = bytearray()
        self._room = rules.room
        self._stream: BinaryIO | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._start,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._field, self._value, self._kind, self._place = b"", b"", b"", {}
        self._text.clear()

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._place = parse_options_header(self._value)[1]
        elif self._field.lower() == b"content-type":
            self._kind = self._value
        self._field, self._value = b"", b""

    def _start(self) -> None:
        if b"filename" not in self._place and not self._rules.all_files:
            return
        if self._folder is None:
            raise HttpFailure(422, "expected a form without files, found one", {"Connection": "close"})
        files = self.form.files
        if len(files) == self._rules.most:
            text = f"expected at most {self._rules.most:,} files, {self._rules.what}, found more"
            raise HttpFailure(422, text, {"Connection": "close"})
        path = self._folder / f"{self._rules.stem}{len(files) + 1}"
        name, called = (_text(self._place.get(key, b"")) for key in (b"name", b"filename"))
        files.append(SentFile(name, path, called, _text(self._kind)))
        self._stream = path.open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._stream is not None:
            self._stream.write(data[start:end])
            return
        self._take_room(end - start)
        self._text += data[start:end]

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            most = self._rules.room
            raise HttpFailure(413, f"expected at most {most:,} bytes of a form beside its files, found more")

    def _part_end(self) -> None:
        if self._stream is None and b"name" in self._place:
            self.form.texts[_text(self._place[b"name"])] = _text(bytes(self._text))
        self.close()

    def close(self) -> None:
        """Ends the file that is being written, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _end(self) -> None:
        self.ended = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
