"""What the server's tests share: one tiny model, the filled cache, and one embedded Triton. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_entries as tiny
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.install import fetch
from voxtile_server.options import ServerOptions

SLOW_START_S = 60


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the one model "double"; the space in its path is on purpose."""
    folder = tmp_path_factory.mktemp("model repository")
    tiny.write_doubling(folder, "double")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on `repository`, with HTTP and metrics, for tests that do not stop it."""
    with EmbeddedServer(repository, ServerOptions(http_port=0, metrics_port=0, ready_timeout_s=120)) as running:
        yield running
        running.kill()  # an orderly end takes Triton seconds, and is tested elsewhere


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache, filled."""
    folder = fetch.cache_folder()
    fetch.fetch_triton(folder)
    fetch.fetch_engines(folder)
    return folder


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A repository whose model takes longer to load than any test waits."""
    tensors = [("x", "TYPE_FP32", (1,))]
    folder = tiny.write_entry(tmp_path / "slow", tiny.config("sleeper", "python", tensors, [("y", *tensors[0][1:])]))
    code = "import time\n\nclass TritonPythonModel:\n    def initialize(self, args):\n"
    code += f"        time.sleep({SLOW_START_S})\n"
    (folder / "1" / "model.py").write_text(code)
    return tmp_path / "slow"
