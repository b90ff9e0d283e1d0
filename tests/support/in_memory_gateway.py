"""The command `voxtile-gateway` with a network in its process in place of Triton, and notes of all files it touches.

Run as `python -m tests.support.in_memory_gateway ARGUMENTS…`; NOTES names the file of the notes, a path a line.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import voxtile_server.gateway.models
from tests.support.in_memory_commands import transport
from voxtile_server.gateway.cli import main

NOTES = "VOXTILE_TEST_NOTES"


def note_files(place: str) -> None:
    """Notes the path of whatever this process opens, makes, renames or removes from now on."""
    notes = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.partition(".")[0] in ("open", "os", "shutil", "tempfile"):
            paths = [os.fsdecode(one) for one in arguments if isinstance(one, (str, bytes))]
            os.write(notes, "".join(f"{one}\n" for one in paths).encode())

    sys.addaudithook(hook)


if __name__ == "__main__":
    voxtile_server.gateway.models.connect_transport = lambda *_: transport()  # type: ignore[assignment]
    note_files(os.environ[NOTES])
    sys.exit(main())
