"""Keeps a text in a NIfTI file: an extension of its header, which other programs skip.

Knows nothing of what the text says.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

COMMENT = 6
"""NIfTI's code of an extension that holds plain text."""

MARK = b"voxtile: "
"""How our note begins, among the comments of others."""


SIZE_AND_CODE = 8
"""Bytes with which an extension begins."""


def add_note(image: Any, text: str) -> None:
    """Adds a note to a nibabel NIfTI image."""
    from nibabel.nifti1 import Nifti1Extension

    image.header.extensions.append(Nifti1Extension(COMMENT, MARK + text.encode()))


def notes_in(extensions: bytes, order: Literal["little", "big"]) -> list[str]:
    """Our notes in a NIfTI file.

    Args:
        extensions: what lies between header and voxels: four bytes that say whether extensions come, and these.
        order: the byte order of the header.
    """
    notes, at = [], 4 if extensions[:1] not in (b"", b"\0") else len(extensions)
    while at + SIZE_AND_CODE <= len(extensions):
        size, code = (int.from_bytes(extensions[at + place : at + place + 4], order) for place in (0, 4))
        text = extensions[at + SIZE_AND_CODE : at + size].rstrip(b"\0")
        if code == COMMENT and text.startswith(MARK):
            notes.append(text[len(MARK) :].decode(errors="replace"))
        at += max(size, SIZE_AND_CODE)
    return notes


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
    size = -(-(SIZE_AND_CODE + len(text)) // 16) * 16
    head = size.to_bytes(4, sys.byteorder) + COMMENT.to_bytes(4, sys.byteorder)
    return head + text.ljust(size - SIZE_AND_CODE, b"\0")
