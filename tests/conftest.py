"""Fixtures of several distributions: small models that voxtile-build has built, and a real Triton that serves them.

torch is imported only where a test asks for one of these fixtures, so that tests without it need none.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxtile_server.embedded import EmbeddedServer

# Tests import OpenVINO before voxtile-build hides from it what reports each conversion to its makers.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

ROOT = Path(__file__).parents[1]
LONG = (
    "tests/build/test_all_networks_served.py",
    "tests/build/test_aotinductor_served.py",
    "tests/build/test_network_sources.py",
    "tests/build/test_served_precisions.py",
    "tests/build/test_passes.py",
    "tests/build/test_onnx_to_tensorrt.py",
    "tests/build/test_compose_upsample.py",
    "tests/build/test_optimise.py",
    "tests/build/test_prepared.py",
    "tests/build/test_distil.py",
    "tests/project/test_bench.py",
    "tests/project/test_bench_gpu.py",
    "tests/project/test_bench_volume.py",
    "tests/project/test_nnunet_how_to.py",
    "tests/project/test_docs_own_weights.py",
    "tests/project/test_nnunet_set_how_to.py",
    "tests/client/test_nnunet_end_to_end.py",
    "tests/client/test_transport.py",
)
"""Files of a minute and more, the longest first. They begin: a long one that begins last keeps one worker alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those of many tests; within a file the order stays. pytest-xdist is told to keep it."""
    gone = [name for name in LONG if not (ROOT / name).is_file()]
    if gone:
        raise pytest.UsageError(f"{__file__}: LONG names files that are gone: {', '.join(gone)}")
    tests = Counter(item.path for item in items)
    long = {ROOT / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (long.get(item.path, len(long)), -tests[item.path], item.path))


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
    from tests.support.exporting import share_exports, share_operators
    from tests.support.run_folder import run_folder
    from tests.support.small_models import build_small_models
    from tests.support.umask import usual_umask

    share_operators()
    share_exports(run_folder(tmp_path_factory) / "exports")
    with usual_umask():  # the doctor asks whether a container may read them
        return build_small_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on `repository`, for tests that do not stop it."""
    with EmbeddedServer(repository) as running:
        yield running
        running.kill()  # an orderly end takes Triton seconds, and is tested elsewhere
