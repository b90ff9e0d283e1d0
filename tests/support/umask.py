"""The umask that most people have, for files that others than their owner have to read. Knows nothing of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def usual_umask() -> Iterator[None]:
    """In the block files are for others too, however strict the umask of who runs the tests is."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
