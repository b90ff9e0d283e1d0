"""What every route of MONAI Label's protocol needs of a request: its caller, its form, the store and the intake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from voxtile.io.formats.all import SUFFIXES
from voxtile.io.formats.base import ends_in
from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.intake import Intake
from voxtile_server.gateway.monailabel.params import USUAL_ENDING
from voxtile_server.gateway.monailabel.store import Store
from voxtile_server.gateway.settings import Settings
from voxtile_server.gateway.tokens import Tokens
from voxtile_server.gateway.uploads import Count, Form, SentFile, take_form

ENDINGS = (*SUFFIXES, ".zip", ".dcm", ".seg.nrrd", ".json")
"""The endings of files that clients send: scans, and what 3D Slicer saves segmentations and boxes in."""


@dataclass(frozen=True)
class Door:
    """The routes' way to the rest of the gateway.

    Attributes:
        settings: how the gateway works.
        tokens: who may call.
    """

    settings: Settings
    tokens: Tokens

    def caller(self, request: Request) -> bytes:
        """Whom a request is from."""
        return self.tokens.caller(request.headers.get("authorization", "").encode("latin-1"))

    def store(self, request: Request) -> Store:
        """What callers have sent."""
        store: Store = request.app.state.store
        return store

    def intake(self, request: Request) -> Intake:
        """What begins jobs."""
        intake: Intake = request.app.state.intake
        return intake

    def announced(self, request: Request) -> int:
        """The bytes that a request says it has; 0 where it does not say it."""
        said = request.headers.get("content-length", "")
        return int(said) if said.isdecimal() else 0

    async def form(self, request: Request, folder: Path, count: Count | None = None) -> Form:
        """The form of a request, its files in a folder; see `take_form`."""
        limits = self.settings
        return await take_form(request, folder, limits.max_upload_bytes, limits.upload_timeout_s, count)


def files_in(form: Form, *fields: str) -> list[SentFile]:
    """The files of a form, all of which stand in one of `fields`; several are the channels of one scan.

    Raises:
        HttpFailure: 422, a file in another field.
    """
    for file in form.files:
        if file.field not in fields:
            found = repr(file.field[:40])
            raise HttpFailure(422, f"expected files in the field {' or '.join(map(repr, fields))} alone, found {found}")
    return form.files


def one_file_in(form: Form, field: str) -> SentFile:
    """The one file of a form. Raises HttpFailure 422."""
    files = files_in(form, field)
    if len(files) != 1:
        raise HttpFailure(422, f"expected one file in the field {field!r}, found {len(files)}")
    return files[0]


def ending_of(files: Sequence[SentFile]) -> str:
    """How the name of the first of several files ends; as a NIfTI file's where that says nothing."""
    return ends_in(files[0].name, ENDINGS) or USUAL_ENDING
