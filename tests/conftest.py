"""Fixtures of several distributions: small models that voxtile-build has built, and a real Triton that serves them.

torch is imported only where a test asks for one of these fixtures, so that tests without it need none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxtile_server.embedded import EmbeddedServer

# Tests import OpenVINO before voxtile-build hides from it what reports each conversion to its makers.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch on one thread: networks of a few features lose more by waiting for other threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the models identity and small-unet, each also with int16 input."""
    from tests.support.exporting import share_operators
    from tests.support.small_models import build_small_models

    share_operators()
    return build_small_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on `repository`, for tests that do not stop it."""
    with EmbeddedServer(repository) as running:
        yield running
        running.kill()  # an orderly end takes Triton seconds, and is tested elsewhere
