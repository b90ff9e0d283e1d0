"""Many tiles on their way: order, faults, restarts, memory that is given back; on real servers that really die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support.heads import head, image
from tests.support.tile_requests import ROI, requests
from voxtile import (
    ConnectionConfig,
    InputError,
    ModelError,
    NoResponseError,
    RetryPolicy,
    Segmentation,
    Segmenter,
    ServerUnavailable,
    TileError,
)
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import connect_transport
from voxtile.triton.types import Request, Traffic
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions


def only(name: str, engine: str) -> ServerOptions:
    """Serves one model alone: a server that is restarted often need not load the others."""
    return ServerOptions(model_control_mode="explicit", load_models=(name, f"{name}_{engine}"))


def regions(process: int | None = None) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"voxtile-{process or os.getpid()}-*")}


def server_regions(server: EmbeddedServer) -> list[str]:
    from tritonclient.grpc import InferenceServerClient

    client = InferenceServerClient(server.grpc_url)
    try:
        return list(client.get_system_shared_memory_status(headers=server.key_header).regions)
    finally:
        client.close()


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("in_flight", [1, 3, 16])
def test_answers_come_in_order(server: EmbeddedServer, shared_memory: bool, in_flight: int) -> None:
    connection = ConnectionConfig(shared_memory=shared_memory)
    traffic = Traffic()
    with connect_transport(server.grpc_url, "identity", connection) as transport:
        found = [float(scores.mean()) for scores in transport.infer(requests(60), in_flight, traffic)]
    assert found == list(range(60))
    assert traffic.peak_in_flight <= in_flight
    assert traffic.bytes_sent == traffic.bytes_received == 60 * 2 * 4 * 16 * 24 * 8
    assert traffic.requests == 60
    assert traffic.shared_memory is shared_memory


def test_two_servers_share_the_work(server: EmbeddedServer, repository: Path) -> None:
    with (
        EmbeddedServer(repository, only("identity", "onnxruntime")) as second,
        connect_transport([server.grpc_url, second.grpc_url], "identity") as transport,
    ):
        before = [count(server), count(second)]
        found = [float(scores.mean()) for scores in transport.infer(requests(80))]
        after = [count(server), count(second)]
        second.kill()
    assert found == list(range(80))
    assert min(now - then for now, then in zip(after, before, strict=True)) > 10


def count(server: EmbeddedServer) -> int:
    from tritonclient.grpc import InferenceServerClient

    client = InferenceServerClient(server.grpc_url)
    statistics = client.get_inference_statistics("identity").model_stats[0]
    client.close()
    return int(statistics.inference_count)


def test_leaving_early_cancels_and_leaves_nothing(server: EmbeddedServer) -> None:
    made = []

    def many() -> Iterator[Request]:
        for request in requests(10_000):
            made.append(request.index)
            yield request

    with connect_transport(server.grpc_url, "identity") as transport:
        answers = transport.infer(many())
        next(answers)
        answers.close()
        assert len(made) < 100
        assert not [
            thread for thread in threading.enumerate() if thread.name.startswith(("voxtile-pump", "voxtile-probe"))
        ]
    assert not regions()
    assert not [name for name in server_regions(server) if f"-{os.getpid()}-" in name]


def test_a_closed_transport_says_so(server: EmbeddedServer) -> None:
    transport = connect_transport(server.grpc_url, "identity")
    transport.close()
    transport.close()
    with pytest.raises(InputError, match=r"the connection to 127.0.0.1:\d+ has been closed; make a new one"):
        transport.infer(requests(1))


def test_nobody_there() -> None:
    with pytest.raises(ServerUnavailable, match=r"no Triton server answers gRPC at 127.0.0.1:9 .*--url HOST:PORT"):
        connect_transport("127.0.0.1:9", "identity")


def test_one_of_two_there(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    with connect_transport(["127.0.0.1:9", server.grpc_url], "identity") as transport:
        assert [float(s.mean()) for s in transport.infer(requests(5))] == [0, 1, 2, 3, 4]
    assert "going on without it" in caplog.text


def test_an_engine_behind_a_public_name_has_no_card(server: EmbeddedServer) -> None:
    with pytest.raises(ModelError, match="carries no card"):
        connect_transport(server.grpc_url, "identity_onnxruntime")


def test_a_request_that_no_server_can_take_ends_with_its_reason(server: EmbeddedServer) -> None:
    wrong, traffic = Request(0, np.zeros((1, 1, 5, 5, 5), np.float32), None), Traffic()
    with (
        connect_transport(server.grpc_url, "identity", ConnectionConfig(shared_memory=False)) as transport,
        pytest.raises(TileError, match=r"'identity': request 0 \(1 tiles\) failed 1 time, last at 127.0.0.1"),
    ):
        list(transport.infer(iter([wrong]), traffic=traffic))
    assert traffic.retries == 0


def test_a_server_that_stays_away_ends_the_scan_after_the_timeout(repository: Path) -> None:
    server = EmbeddedServer(repository, only("identity", "onnxruntime")).start()
    try:
        retry_policy = RetryPolicy(no_response_timeout_s=1.0)
        with connect_transport(server.grpc_url, "identity", retry_policy=retry_policy) as transport:
            answers = transport.infer(requests(10_000))
            next(answers)
            server.kill()
            with pytest.raises(NoResponseError, match="no server has answered for"):
                list(answers)
    finally:
        server.stop()


@contextlib.contextmanager
def held_at(tile: int, segmenter: Segmenter, scan: object) -> Iterator[tuple[list[Segmentation], Callable[[], None]]]:
    """A segmentation in the background that waits, once `tile` tiles are stitched, until it is let go.

    Gives the list that its result is in after the context, and what lets it go; the context's end does so too.
    """
    results: list[Segmentation] = []
    reached, released = threading.Event(), threading.Event()

    def progress(done: int, _: int) -> None:
        if done == tile:
            reached.set()
            assert released.wait(60)

    thread = threading.Thread(target=lambda: results.append(segmenter.segment(scan, progress)))
    thread.start()
    try:
        assert reached.wait(60)
        yield results, released.set
    finally:
        released.set()
        thread.join(120)


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_server_killed_in_the_middle_costs_time_and_not_the_scan(repository: Path, times: int) -> None:
    scan = image(head((128, 64, 64)))
    random = np.random.default_rng(8)
    server = EmbeddedServer(repository, only("small-unet", "openvino")).start()
    try:
        with Segmenter(server.grpc_url, "small-unet", sw_batch_size=1) as segmenter:
            undisturbed = segmenter.segment(scan)
            for tile in random.integers(1, undisturbed.report.tiles // 2, times):  # far from done when the server dies
                with held_at(tile, segmenter, scan) as (results, let_go):
                    server.kill()
                    let_go()
                    server.start()
                np.testing.assert_array_equal(results[0].labels, undisturbed.labels)
                assert results[0].report.retries >= 1
        assert not regions()
        server.kill()
    finally:
        server.stop()


def test_one_of_two_servers_killed_for_good(server: EmbeddedServer, repository: Path) -> None:
    scan = image(head((144, 64, 64)))
    dying = EmbeddedServer(repository, only("small-unet", "openvino")).start()
    try:
        with Segmenter([dying.grpc_url, server.grpc_url], "small-unet", sw_batch_size=1) as segmenter:
            undisturbed = segmenter.segment(scan)
            with held_at(3, segmenter, scan) as (results, _):
                dying.kill()
        np.testing.assert_array_equal(results[0].labels, undisturbed.labels)
    finally:
        dying.stop()


def test_scores_do_not_depend_on_the_batch_that_a_tile_came_in(server: EmbeddedServer) -> None:
    """Neither on that of the request nor on what the server puts together."""
    scan = image(head((70, 64, 61)))
    found = []
    for batch, in_flight in ((1, 1), (1, 8), (2, 3), (4, 8)):
        with Segmenter(
            server.grpc_url, "small-unet", sw_batch_size=batch, in_flight=in_flight, keep_scores=True
        ) as segmenter:
            found.append(segmenter.segment(scan).scores)
    for scores in found[1:]:
        np.testing.assert_array_equal(scores, found[0])


CLIENT = """
import sys, time
sys.path[:0] = {path!r}
from tests.support.tile_requests import requests
from voxtile import ConnectionConfig
from voxtile.triton.grpc_transport import connect_transport
transport = connect_transport({url!r}, "identity", ConnectionConfig(shared_memory=True))
answers = transport.infer(requests(100_000))
next(answers)
print("going", flush=True)
for _ in answers:
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_is_killed_leaves_no_region(server: EmbeddedServer, how: signal.Signals) -> None:
    code = CLIENT.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[2])], url=server.grpc_url)
    client = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with SIGINT ignored, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "going\n"
    client.send_signal(how)
    client.communicate(timeout=60)
    with connect_transport(server.grpc_url, "identity", ConnectionConfig(shared_memory=None)) as transport:
        traffic = Traffic()
        list(transport.infer(requests(2), traffic=traffic))
        assert traffic.shared_memory
    assert not regions(client.pid)
    assert not [name for name in server_regions(server) if f"-{client.pid}-" in name]


def test_an_endpoint_lists_what_is_offered(server: EmbeddedServer) -> None:
    endpoint = Endpoint(server.grpc_url, ConnectionConfig())
    assert ("identity", "READY") in endpoint.models()
    endpoint.close()


@pytest.fixture
def logarithm(repository: Path, tmp_path: Path) -> Path:
    """The repository with another engine behind the name identity: log(x), so that negative values give NaN."""
    import onnx
    from onnx import TensorProto, helper

    target = tmp_path / "model_repository"
    for entry in ("identity", "identity_onnxruntime"):
        shutil.copytree(repository / entry, target / entry)
    file = target / "identity_onnxruntime/1/model.onnx"
    shape = ["batch", 1, *ROI]
    graph = helper.make_graph(
        [helper.make_node("Log", ["roi"], ["scores"])],
        "log",
        [helper.make_tensor_value_info("roi", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return target


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_answer_that_is_not_finite_is_asked_for_again_and_then_named(logarithm: Path, shared_memory: bool) -> None:
    values, traffic = [np.full((2, 1, *ROI), value, np.float32) for value in (1.0, 2.0, -1.0, 3.0)], Traffic()
    with (
        EmbeddedServer(logarithm) as server,
        connect_transport(server.grpc_url, "identity", ConnectionConfig(shared_memory=shared_memory)) as transport,
    ):
        answers = transport.infer((Request(index, roi, None) for index, roi in enumerate(values)), traffic=traffic)
        assert next(answers).mean() == pytest.approx(0.0)
        assert next(answers).mean() == pytest.approx(np.log(2.0))
        with pytest.raises(TileError, match=r"'identity': request 2 \(2 tiles\) failed 4 times.*NaN or infinite"):
            next(answers)
        server.kill()
    assert traffic.retries == 3
    assert not regions()
