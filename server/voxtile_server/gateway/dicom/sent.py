"""Takes a DICOM series from a request to disk: a zip, an object, a form of files, or DICOMweb's `multipart/related`.

Knows nothing of what is in the objects. Names that a caller gives to files are not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from voxtile.io.dicom.objects.files import is_dicom
from voxtile.io.dicom.objects.strangers import LOOKED_AT
from voxtile_server.gateway.dicom.archives import MOST_OBJECTS, check_archive
from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.settings import Settings
from voxtile_server.gateway.uploads import PartRules, SentFile, take_parts, take_whole

DICOM = "application/dicom"
FORM, RELATED = "multipart/form-data", "multipart/related"

ONE_FILE = frozenset({"", DICOM, "application/zip", "application/x-zip-compressed", "application/octet-stream",
                      "application/x-www-form-urlencoded"})  # fmt: skip
"""Types of a body that is one file. The last is what curl says of every body where nothing else is said."""

WANTED = f'a zip (application/zip), {FORM}, {RELATED}; type="{DICOM}", or one object ({DICOM})'

HEADERS_ROOM = 16 << 20
"""Bytes that the headers of all parts may have."""

OBJECTS = PartRules(MOST_OBJECTS, "objects of a series", "object-", HEADERS_ROOM)
PARTS = PartRules(MOST_OBJECTS, "objects of a series", "object-", HEADERS_ROOM, all_files=True)

ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
"""How a zip begins; the second is one without files, the third a part of one."""


@dataclass(frozen=True)
class Limits:
    """How much may be sent.

    Attributes:
        body: bytes of the body.
        timeout_s: seconds without a byte.
        member: bytes of one file of a zip, unpacked.
    """

    body: int
    timeout_s: float
    member: int

    @staticmethod
    def of(settings: Settings) -> Limits:
        """The limits by the operator's settings."""
        body, ram = settings.max_upload_bytes, settings.max_ram_bytes
        return Limits(body, settings.upload_timeout_s, body if ram is None else min(body, ram))


async def take_series(request: Request, folder: Path, limits: Limits) -> list[Path]:
    """Writes what is sent to files.

    Args:
        request: the request.
        folder: an empty folder for them.
        limits: how much may be sent.

    Returns:
        The sources of the scan, as `Segmenter` takes them: a folder of objects, an object, or zips.

    Raises:
        HttpFailure: 415, the body is of another type; 413, it is too large; 422, it is damaged or no DICOM.
    """
    kind, options = _type_of(request.headers.get("content-type", ""))
    if kind in ONE_FILE:
        files = [await take_whole(request, folder / "scan", limits.body, limits.timeout_s)]
    elif kind in (FORM, RELATED):
        files = await _parts(request, folder, kind, options, limits)
    else:
        raise HttpFailure(415, f"expected {WANTED}, found the Content-Type {kind[:80]}", {"Connection": "close"})
    return await asyncio.to_thread(_sources, files, folder, limits)


async def _parts(request: Request, folder: Path, kind: str, options: dict[str, str], limits: Limits) -> list[Path]:
    if kind == RELATED and options.get("type", DICOM).lower() != DICOM:
        text = f'expected {RELATED} with type="{DICOM}", found type {options["type"][:80]}'
        raise HttpFailure(415, text, {"Connection": "close"})
    inside = folder / "scan"
    inside.mkdir()
    rules = PARTS if kind == RELATED else OBJECTS
    form = await take_parts(request, inside, limits.body, limits.timeout_s, rules)
    if form.texts:
        raise HttpFailure(422, "expected options behind the question mark of the address, found them in the form")
    if kind == RELATED:
        _check_types(form.files)
    return [file.path for file in form.files]


def _check_types(parts: Sequence[SentFile]) -> None:
    for number, part in enumerate(parts, 1):
        found = _type_of(part.kind)[0]
        if found not in ("", DICOM):
            raise HttpFailure(415, f"part {number}: expected the Content-Type {DICOM}, found {found[:80]}")


def _sources(files: Sequence[Path], folder: Path, limits: Limits) -> list[Path]:
    """What the files are, looked over: zips, one for each channel, or objects.

    Objects that are damaged so far that they cannot be told as DICOM would be left out in silence in a folder, where
    other files may lie; here nothing else may be.
    """
    if not files or not any(file.stat().st_size for file in files):
        raise HttpFailure(422, f"expected the objects of a series in the body: {WANTED}; found nothing")
    begins = [_first(file) for file in files]
    zips = [first.startswith(ZIPS) for first in begins]
    if all(zips):
        for file in files:
            check_archive(file, _named(file, folder), limits.body, limits.member)
        return list(files)
    wanted = "a zip of a DICOM series, or a DICOM object" if len(files) == 1 else "a DICOM object"
    for file, first, packed in zip(files, begins, zips, strict=True):
        if packed or not is_dicom(first):
            found = "a zip among objects" if packed else "something else" if first else "an empty file"
            raise HttpFailure(422, f"{_named(file, folder)}: expected {wanted}, found {found}")
    return [files[0]] if len(files) == 1 else [files[0].parent]


def _first(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(LOOKED_AT)


def _named(file: Path, folder: Path) -> str:
    """What messages call a file: by its place in the request, as those of the reader do."""
    return str(file.relative_to(folder))


def _type_of(header: str) -> tuple[str, dict[str, str]]:
    """A type and its parameters, as a header says them."""
    kind, options = parse_options_header(header)
    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in options.items()}
    return kind.decode("latin-1").lower(), found
