"""Makes texts fit for DICOM, and keeps what libraries say of headers from being shown.

Knows nothing of segmentations.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from voxtile.errors import OutputError, VoxtileError

LONG_STRING = 64
"""Characters of DICOM's short texts (LO), at most."""

SHORT_TEXT = 1024
"""Characters of DICOM's ST, at most."""

LIBRARIES = ("pydicom", "highdicom")

CUT = "..."


def fitted(text: str, most: int = LONG_STRING) -> str:
    """Returns `text` as one value of DICOM: without backslash and control characters, cut where it is too long."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text.replace("\\", "/")).split())
    return plain if len(plain) <= most else plain[: most - len(CUT)].rstrip() + CUT


@contextmanager
def quietly(what: str) -> Iterator[None]:
    """Within the block libraries say nothing, because they quote values of headers, which name a patient.

    Args:
        what: what is being made, for the error: "the DICOM SEG".

    Raises:
        OutputError: a library failed. Only the kind of its error and its place are told.
    """
    before = {name: logging.getLogger(name).level for name in LIBRARIES}
    try:
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (VoxtileError, MemoryError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}, line {last.lineno}"
        raise OutputError(f"{what} could not be made of this scan ({type(error).__name__} in {where})") from None
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
