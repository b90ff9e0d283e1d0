"""A process that dies at one of its calls to the file system, played in this process: from then on no call is made.

Knows nothing of cohorts.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = ((os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "open"), (io, "open"), (os, "fstat"))
"""What pathlib asks of the system to make, name, open and remove files; fstat comes before lines are appended."""


class Died(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def dying(folder: Path, at: int) -> Iterator[None]:
    """Within the block, the call number `at` (from 1) about a file below `folder`, and every later one, raises Died.

    What an open file has been given already stays, as when a process is killed. What the block returns means nothing.
    """
    seen = 0

    def ending(real: Any) -> Any:
        def called(path: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal seen
            is_file = isinstance(path, int)
            is_there = is_file or Path(os.fsdecode(path)).is_relative_to(folder)
            seen += is_there and not is_file
            if is_there and seen >= at:
                raise Died
            return real(path, *arguments, **options)

        return called

    with contextlib.ExitStack() as stack:
        for module, name in CALLS:
            stack.enter_context(mock.patch.object(module, name, ending(getattr(module, name))))
        with contextlib.suppress(Died):
            yield
