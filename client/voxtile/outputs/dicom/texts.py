"""Makes texts fit for DICOM, and keeps what libraries say of headers from being shown.

Knows nothing of segmentations.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from voxtile.errors import OutputError, VoxtileError
from voxtile.io.dicom.objects.quiet import quietly as silently

LONG_STRING = 64
"""Bytes of DICOM's short texts (LO) at most: the standard counts characters, and some readers bytes."""

SHORT_TEXT = 1024
"""The same of DICOM's ST."""

CUT = "..."


def fitted(text: str, most: int = LONG_STRING) -> str:
    """Returns `text` as one value of DICOM: without backslash and control characters, cut where it is too long."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text.replace("\\", "/")).split())
    data = plain.encode("utf-8", "replace")
    return data.decode() if len(data) <= most else data[: most - len(CUT)].decode("utf-8", "ignore").rstrip() + CUT


@contextmanager
def quietly(what: str) -> Iterator[None]:
    """Within the block libraries say nothing, because they quote values of headers, which name a patient.

    Args:
        what: what is being made, for the error: "the DICOM SEG".

    Raises:
        OutputError: a library failed. Only the kind of its error and its place are told.
    """
    try:
        with silently():
            yield
    except (VoxtileError, MemoryError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}, line {last.lineno}"
        raise OutputError(f"{what} could not be made of this scan ({type(error).__name__} in {where})") from None
