"""Listeners for tests: in this process or in one that can be killed, the sender, and the PACS that gets what is found.

Run as `python -m tests.support.listeners FILE` it is `voxtile-listener` with a network in its process in place of a
server, which takes SECONDS a tile and makes the file BEGAN at the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import SegmentationStorage

from tests.support import dicom_findings as made
from tests.support.in_memory import InMemoryTransport
from tests.support.node_pacs import Node
from voxtile.triton.connection import ConnectionConfig
from voxtile_server.listener.listening import listening
from voxtile_server.listener.settings import load_settings

ROOT = Path(__file__).parents[2]
SECONDS, BEGAN = "VOXTILE_TEST_SECONDS", "VOXTILE_TEST_BEGAN"
SENDER = "SCANNER"
WITHIN_S = 60.0

SETTINGS = """
spool = "spool"
[listen]
port = 0
{listen}
[complete]
idle_seconds = 0.4
ask_seconds = 0.2
{complete}
[limits]
free_mib = 0
{limits}
[keep]
retry_minutes = [0.005, 0.005]
{keep}
[pacs.archive]
address = "{archive}"
{more}
[[rule]]
name = "bodies"
modality = "CT"
model = "phantom"
to = ["archive"]
{rule}
"""


def write_settings(folder: Path, archive: str, **parts: str) -> Path:
    """The settings of a listener below `folder` that sends to `archive`; `parts` are more lines of a table."""
    names = ("listen", "complete", "limits", "keep", "more", "rule")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "listener.toml"
    file.write_text(SETTINGS.format(archive=archive, **{name: parts.get(name, "") for name in names}))
    return file


def transport() -> InMemoryTransport:
    """A model in this process."""
    began, seconds = os.environ.get(BEGAN), float(os.environ.get(SECONDS, "0"))

    def network(tiles: Any) -> Any:
        if began:
            Path(began).touch()
        time.sleep(seconds)
        value = tiles[:, :1]
        scores = [np.full_like(value, 50.0), np.where(value > 100, 100.0, 0.0)]
        return np.concatenate(scores, axis=1).astype(np.float32)

    return InMemoryTransport(made.card_for(["liver"]), network)


class Lines:
    """The audit of a listener in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[dict[str, Any]]:
        """Its lines."""
        file = self.folder / "spool" / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def of(self, outcome: str) -> list[dict[str, Any]]:
        """Those of an outcome."""
        return [line for line in self.all() if line["outcome"] == outcome]

    def wait(self, outcome: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits until there are so many of an outcome."""
        until(lambda: len(self.of(outcome)) >= count, lambda: self.all())
        return self.of(outcome)


def until(condition: Callable[[], Any], state: Callable[[], Any] = lambda: "") -> None:
    """Waits for a condition."""
    limit = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < limit, state()
        time.sleep(0.02)


@contextlib.contextmanager
def in_process(settings: Path) -> Iterator[int]:
    """A listener in this process; gives its port. The test puts `transport` in place of a server."""
    with listening(load_settings(settings), ("memory:1",), ConnectionConfig()) as port:
        yield port


@dataclass
class Process:
    """A listener in a process of its own. Attributes: port; process; errors: what it says on standard error."""

    port: int
    process: subprocess.Popen[str]
    errors: Path

    def kill(self) -> None:
        """Ends it at once, as a loss of power does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WITHIN_S)


@contextlib.contextmanager
def a_process(
    settings: Path, seconds: float = 0.0, began: Path | None = None, url: str | None = None
) -> Iterator[Process]:
    """Starts a listener; killed in the end if it still runs; with `url`, the real one before that Triton."""
    environment = {**os.environ, SECONDS: str(seconds), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment |= {BEGAN: str(began)} if began else {}
    errors = settings.with_name("stderr")
    real = ["voxtile_server.listener", str(settings), "--url", str(url)]
    command = [sys.executable, "-m", *(real if url else ["tests.support.listeners", str(settings)])]
    with (
        errors.open("a") as stream,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, env=environment, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("the listener is VOXTILE@127.0.0.1:"), line + errors.read_text()
            yield Process(int(line.split(",")[0].rpartition(":")[2]), process, errors)
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def calling(
    port: int, objects: Sequence[FileDataset], title: str = SENDER, called: str = "VOXTILE", **tls: Any
) -> Iterator[Association]:
    """An association for objects, which ends in good order."""
    entity = AE(title)
    kinds = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in objects}
    contexts = [build_context(kind, syntax) for kind, syntax in sorted(kinds)]
    association = entity.associate("127.0.0.1", port, contexts, called, **tls)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(port: int, objects: Sequence[FileDataset], title: str = SENDER) -> list[int]:
    """Sends objects over one association; returns the statuses."""
    with calling(port, objects, title) as association:
        return [association.send_c_store(one).Status for one in objects]


def archive(**changes: Any) -> Node:
    """A PACS that takes segmentations."""
    return Node(kinds=[SegmentationStorage], **changes)


def main() -> int:
    """Runs the listener."""
    import voxtile.segmenter
    from voxtile_server.listener.cli import main as run

    voxtile.segmenter.connect_transport = lambda *_: transport()  # type: ignore[assignment]
    return run([*sys.argv[1:], "--url", "localhost:1"])


if __name__ == "__main__":
    sys.exit(main())
