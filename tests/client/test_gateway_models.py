"""Connections that the gateway's scans share: out of date, forgotten or refused, they end no scan, and none is left."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.whole_scans import write_scan
from voxtile import ConnectionConfig, InputError, ModelError, Options, Segmenter
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.gateway.models import Models
from voxtile_server.gateway.shared import Borrowed

MODEL, OTHER = "small-unet", "small-unet-int16"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz", (70, 60, 50))


@pytest.fixture
def models(server: EmbeddedServer) -> Models:
    return Models([server.grpc_url], ConnectionConfig(), Options(sw_batch_size=1))


def test_a_scan_goes_on_where_its_connection_is_forgotten_and_is_the_last_to_use_it(models: Models, scan: Path) -> None:
    first, second = models.segmenter(MODEL, {}), models.segmenter(MODEL, {})
    expected = np.asarray(first.segment(scan).mask.dataobj)
    forgotten = False

    def forget(*_: int) -> None:
        nonlocal forgotten
        if not forgotten:
            models.forget_all()
            forgotten = True

    np.testing.assert_array_equal(np.asarray(second.segment(scan, forget).mask.dataobj), expected)
    assert forgotten
    first.close()
    first.close()  # twice does nothing
    kept = second.transport.infer  # as a scan that runs holds it
    assert list(kept(iter(()))) == []
    second.close()
    with pytest.raises(InputError, match="has been closed"):
        kept(iter(()))
    np.testing.assert_array_equal(np.asarray(models.segmenter(MODEL, {}).segment(scan).mask.dataobj), expected)
    models.forget_all()


def test_who_forgets_a_segmenter_gives_its_connection_back(models: Models) -> None:
    kept = models.segmenter(MODEL, {}).transport.infer
    models.forget_all()
    gc.collect()
    with pytest.raises(InputError, match="has been closed"):
        kept(iter(()))


def test_scans_share_connections_and_names_that_callers_invent_leave_nothing(models: Models) -> None:
    with ThreadPoolExecutor(8) as threads:
        made: list[Segmenter] = list(threads.map(lambda at: models.segmenter((MODEL, OTHER)[at % 2], {}), range(16)))
    shared = {one.transport.infer.__self__ for one in made}
    assert len(shared) == 2
    assert all(isinstance(one.transport, Borrowed) for one in made)
    before = threading.active_count()
    for number in range(20):
        with pytest.raises(ModelError):
            models.segmenter(f"nothing-{number}", {})
    assert threading.active_count() <= before
    gc.collect()
    assert len(models._doors) == 0
    assert set(models._open) == {MODEL, OTHER}
    del made
    models.forget_all()
