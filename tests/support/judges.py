"""The real server as the judge of repositories: whether it loads an entry, and so whether a finding is true."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.doctored import plain
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions


@contextlib.contextmanager
def judge(repository: Path) -> Iterator[EmbeddedServer]:
    """A server on a new repository, which loads what it is told."""
    plain(repository, "first")
    with EmbeddedServer(repository, ServerOptions(model_control_mode="explicit", load_models=("first",))) as running:
        yield running
        running.kill()
