"""Tells a file that was not fetched, such as a pointer of git-lfs, from one with weights. Knows no kind of weights."""

from __future__ import annotations

from pathlib import Path

from voxtile_build.errors import WeightsError

LFS, PAGES = b"version https://git-lfs", (b"<!doctype", b"<html")
HEAD_BYTES = 64


def not_fetched(head: bytes) -> str | None:
    """What a file is that begins with `head` and cannot be meant, and what to do; None where it may be meant."""
    if not head:
        return "an empty file; fetch it again"
    if head.startswith(LFS):
        return "a pointer of git-lfs in place of the file; run git lfs pull"
    if head.lstrip().lower().startswith(PAGES):
        return "a web page; the download went wrong, fetch the file itself"
    return None


def require_fetched(path: Path) -> None:
    """Refuse a file that stands in place of another one.

    Raises:
        WeightsError: says what it is.
    """
    try:
        with path.open("rb") as stream:
            what = not_fetched(stream.read(HEAD_BYTES))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if what:
        raise WeightsError(f"{path}: expected weights, found {what}")
