"""What an operator does with a model of two versions on the real server, beside moving its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest

from tests.support.commands import run
from tests.support.versioned import NAME, build_version, scan
from voxtile.load.measure import LoadTest
from voxtile.load.plan import Load
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

SECOND = f"{NAME}@2"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that was asked for the public name and the second version alone."""
    repository = tmp_path_factory.mktemp("operated") / "models"
    build_version(repository, 1)
    build_version(repository, 2)
    options = ServerOptions(model_control_mode="explicit", load_models=(NAME, f"{NAME}.v2"), threads=1)
    with EmbeddedServer(repository, options) as server:
        yield server.grpc_url
        server.kill()


def test_a_load_on_two_versions_tells_the_figures_of_both(url: str) -> None:
    with LoadTest([url], {f"{NAME}@1": 1.0, SECOND: 1.0}, scan()) as test:
        result = test.run(Load(clients=1, scans=4))
    assert result.server.note == ""
    assert {one.entry: one.tiles for one in result.server.entries} == {
        f"{NAME}_onnxruntime": result.server.tiles / 2,
        f"{NAME}.v2_onnxruntime": result.server.tiles / 2,
    }
    assert result.latency is not None
    assert result.latency.compute == pytest.approx(sum(one.busy_seconds for one in result.server.entries) / 4)


def test_a_name_and_the_version_that_it_stands_for_count_one_engine_once(url: str) -> None:
    with LoadTest([url], {NAME: 1.0, f"{NAME}@1": 1.0}, scan()) as test:
        result = test.run(Load(clients=1, scans=2))
    (entry,) = result.server.entries
    assert entry.tiles == result.server.tiles
    assert result.latency is not None
    assert result.latency.compute == pytest.approx(entry.busy_seconds / 2)


def test_what_nobody_has_asked_the_server_for_is_no_fault(url: str, tmp_path: Path) -> None:
    listed = json.loads(run("models", "--url", url, "--versions", "--json").stdout)
    assert {one["name"]: (one["usable"], one["loaded"]) for one in listed} == {
        NAME: (True, True),
        f"{NAME}@1": (False, False),
        SECOND: (True, True),
    }
    nib.save(scan(), tmp_path / "scan.nii")
    found = run("doctor", tmp_path / "scan.nii", "--model", SECOND, "--url", url)
    assert (found.exit_code, "FAIL" in found.stdout) == (0, False), found.output
