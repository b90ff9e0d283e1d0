"""Keeps a text in a NIfTI file: an extension of its header, which other programs skip.

Knows nothing of what the text says.
"""

from __future__ import annotations

import sys
from typing import Any

COMMENT = 6
"""NIfTI's code of an extension that holds plain text."""

MARK = b"voxtile: "
"""How our note begins, among the comments of others."""


def add_note(image: Any, text: str) -> None:
    """Adds a note to a nibabel NIfTI image."""
    from nibabel.nifti1 import Nifti1Extension

    image.header.extensions.append(Nifti1Extension(COMMENT, MARK + text.encode()))


def note_of(image: Any) -> str:
    """The note of a nibabel image; empty where it has none."""
    return next((text[len(MARK) :].decode(errors="replace") for text in map(_content, _ours(image))), "")


def note_bytes(image: Any) -> bytes:
    """What follows the header of a NIfTI file: four bytes that say whether extensions come, and our note."""
    ours = _ours(image)
    if not ours:
        return bytes(4)
    return b"\1\0\0\0" + b"".join(_as_stored(_content(one)) for one in ours)


def _ours(image: Any) -> list[Any]:
    found = getattr(image.header, "extensions", ())
    return [one for one in found if one.get_code() == COMMENT and _content(one).startswith(MARK)]


def _content(extension: Any) -> bytes:
    content = extension.get_content()
    text = content if isinstance(content, bytes) else str(content).encode()
    return text.rstrip(b"\0")


def _as_stored(text: bytes) -> bytes:
    """Size, code and text of an extension, filled up to a multiple of 16 bytes, as NIfTI asks for."""
    size = -(-(8 + len(text)) // 16) * 16
    return size.to_bytes(4, sys.byteorder) + COMMENT.to_bytes(4, sys.byteorder) + text.ljust(size - 8, b"\0")
