"""Sends DICOM objects in the form that a caller accepts: one alone, `multipart/related`, or a zip."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.background import BackgroundTasks
from starlette.responses import FileResponse, Response, StreamingResponse

from voxtile_server.gateway.failures import HttpFailure

ALONE, RELATED, ZIP = "application/dicom", "multipart/related", "application/zip"

ANY = "*/*"
PIECE = 1 << 20
TIMELESS = (1980, 1, 1, 0, 0, 0)
"""The time of files in a zip, so that the same objects are the same zip."""


def form_for(accept: str | None, count: int) -> str:
    """Returns the form of an answer with `count` objects: the one that is preferred, of several the first that fits.

    Args:
        accept: the header `Accept`; None for whatever there is.
        count: how many objects there are.

    Raises:
        HttpFailure: 406, none is accepted.
    """
    ranges = list(_ranges(accept if accept and accept.strip() else ANY))
    offered = (ALONE, RELATED, ZIP) if count == 1 else (ZIP, RELATED)
    weights = {form: _weight(form, ranges) for form in offered}
    best = max(offered, key=lambda form: weights[form])
    if weights[best] <= 0:
        found = (accept or "")[:120]
        what = "one object" if count == 1 else f"{count} objects"
        raise HttpFailure(406, f"expected an Accept with one of {', '.join(offered)} for {what}, found {found}")
    return best


def answer(files: Sequence[Path], form: str, headers: dict[str, str], folder: Path, after: BackgroundTasks) -> Response:
    """An answer with objects.

    Args:
        files: the objects.
        form: see `form_for`.
        headers: of the answer.
        folder: where a zip may be made.
        after: what is done when all is sent.
    """
    if form == ALONE:
        return FileResponse(files[0], media_type=ALONE, filename=files[0].name, headers=headers, background=after)
    if form == RELATED:
        return _related(files, headers, after)
    packed = _packed(files, folder)
    after.add_task(packed.unlink, missing_ok=True)
    return FileResponse(packed, media_type=ZIP, filename="objects.zip", headers=headers, background=after)


def _packed(files: Sequence[Path], folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".zip", delete=False) as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in files:
                inside = zipfile.ZipInfo(file.name, TIMELESS)
                inside.compress_type = zipfile.ZIP_DEFLATED
                with file.open("rb") as source, archive.open(inside, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, PIECE)
        return Path(stream.name)


def _related(files: Sequence[Path], headers: dict[str, str], after: BackgroundTasks) -> Response:
    boundary = f"voxtile-{secrets.token_hex(16)}"
    head = f"--{boundary}\r\nContent-Type: {ALONE}\r\n\r\n".encode()
    tail = f"--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        for file in files:
            yield head
            with file.open("rb") as stream:
                while piece := stream.read(PIECE):
                    yield piece
            yield b"\r\n"
        yield tail

    length = sum(len(head) + file.stat().st_size + 2 for file in files) + len(tail)
    kind = f'{RELATED}; type="{ALONE}"; boundary={boundary}'
    return StreamingResponse(
        pieces(), media_type=kind, headers={**headers, "Content-Length": str(length)}, background=after
    )


# What is accepted ----------------------------------------------------------------------------------------------


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """The ranges of a header `Accept`: type, its parameter `type`, and weight."""
    for one in accept.split(","):
        kind, options = parse_options_header(one.strip())
        weight = _number(options.get(b"q", b"1"))
        yield kind.decode("latin-1").lower(), options.get(b"type", b"").decode("latin-1").lower(), weight


def _number(text: bytes) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


def _weight(form: str, ranges: Sequence[tuple[str, str, float]]) -> float:
    """How much a form is wanted, by the range that names it most closely; 0 where none does."""
    for named in (form, f"{form.partition('/')[0]}/*", ANY):
        weights = [
            weight for kind, inner, weight in ranges if kind == named and (form != RELATED or inner in ("", ALONE))
        ]
        if weights:
            return max(weights)
    return 0.0
