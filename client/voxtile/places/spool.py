"""A folder of this machine for what was fetched or is to be sent: nobody else may look into it, and it is removed.

Knows nothing of addresses.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.io.private_folder import private_folder


class Stopped(Exception):
    """What is fetched is not wanted any more."""


@dataclass
class Spool:
    """A folder for as long as a run takes.

    Attributes:
        folder: where it lies.
        stopped: set once the run is over: a thread that still fetches ends then.
        busy: held by a thread that writes into the folder.
    """

    folder: Path
    stopped: threading.Event = field(default_factory=threading.Event)
    busy: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Within the block the folder is not removed. Raises Stopped where it is to be."""
        with self.busy:
            self.check()
            yield

    def check(self) -> None:
        """Raises Stopped once the run is over."""
        if self.stopped.is_set():
            raise Stopped


@contextlib.contextmanager
def spool() -> Iterator[Spool]:
    """Makes a spool in the folder for temporary files (`TMPDIR`) that only this user may read, and removes it.

    Raises:
        OutputError: it cannot be made.
    """
    with private_folder("places") as folder:
        made = Spool(folder.resolve())
        try:
            yield made
        finally:
            made.stopped.set()
            with made.busy:
                pass
