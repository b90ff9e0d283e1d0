"""Servers that fail, answer wrongly, are silent or die, in every phase: another does their work, or one clear error.

The servers are scripted; see `tests.support.fake_triton`. What a real Triton says is tested in tests/server.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import nibabel as nib
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tests.support.commands import run
from tests.support.fake_triton import ROI, FakeTriton, Rule, changed, fails, silent
from voxtile import (
    ConnectionConfig,
    ModelError,
    NoResponseError,
    OtherBuildError,
    RemoteNetwork,
    Request,
    RetryPolicy,
    Segmenter,
    ServerUnavailable,
    TileError,
    Traffic,
    VoxtileError,
)
from voxtile.load.measure import run_load_test
from voxtile.triton import endpoint, shared_memory
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import GrpcTransport, connect_transport

CODE = grpc.StatusCode
PLAIN = ConnectionConfig(shared_memory=False)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent server is waited for a moment only."""
    monkeypatch.setattr(endpoint, "CONTROL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(shared_memory, "MAP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(shared_memory, "UNMAP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(shared_memory, "STATUS_TIMEOUT_S", 0.5)


def requests(count: int) -> Iterator[Request]:
    """Each holds its own number."""
    for index in range(count):
        yield Request(index, np.full((2, 1, *ROI), index, np.float32), None)


def numbers(transport: GrpcTransport, count: int = 30, traffic: Traffic | None = None) -> list[float]:
    return [float(scores.mean()) for scores in transport.infer(requests(count), traffic=traffic)]


@contextlib.contextmanager
def connected(
    *servers: FakeTriton | str, connection: ConnectionConfig = PLAIN, **policy: Any
) -> Iterator[GrpcTransport]:
    """A transport to the servers, for their model `model`."""
    urls = [one if isinstance(one, str) else one.url for one in servers]
    with connect_transport(urls, "model", connection, RetryPolicy(**policy)) as transport:
        yield transport


# Every phase, several failures --------------------------------------------------------------------------------


def broken_off(context: Any) -> None:
    """Waits until nobody waits for the answer to a call."""
    while context.is_active():
        time.sleep(0.005)


def dies(fake: FakeTriton) -> Rule:
    """A rule that ends the server in the middle of the call."""

    def rule(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        threading.Thread(target=fake.die).start()
        broken_off(context)
        return answer()

    return rule


FAILURES: dict[str, Callable[[FakeTriton], Rule]] = {
    "UNAVAILABLE": lambda fake: fails(CODE.UNAVAILABLE),
    "INTERNAL": lambda fake: fails(CODE.INTERNAL),
    "UNKNOWN": lambda fake: fails(CODE.UNKNOWN),
    "UNAUTHENTICATED": lambda fake: fails(CODE.UNAUTHENTICATED),
    "RESOURCE_EXHAUSTED": lambda fake: fails(CODE.RESOURCE_EXHAUSTED),
    "UNIMPLEMENTED": lambda fake: fails(CODE.UNIMPLEMENTED),
    "CANCELLED": lambda fake: fails(CODE.CANCELLED),
    "silent": silent,
    "dies": dies,
    "nonsense": lambda fake: changed(lambda response: response.Clear()),
}
CONNECTING = ("ServerLive", "ModelConfig", "ModelMetadata")
SHARING = ("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister")
SHORT = ConnectionConfig(deadline_s=0.5)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("phase", [*CONNECTING, "ModelInfer"])
def test_one_server_that_fails_ends_in_a_clear_error(phase: str, failure: str) -> None:
    with FakeTriton() as fake:
        fake.rules[phase] = FAILURES[failure](fake)
        with (
            pytest.raises((ServerUnavailable, ModelError, TileError)) as caught,
            connected(fake, connection=SHORT, no_response_timeout_s=0.5) as transport,
        ):
            numbers(transport)
        assert fake.url in str(caught.value)


@pytest.mark.parametrize("failure", [failure for failure in FAILURES if failure != "dies"])
@pytest.mark.parametrize("phase", SHARING)
def test_tiles_go_through_grpc_where_memory_cannot_be_shared(phase: str, failure: str) -> None:
    with FakeTriton() as fake:
        fake.rules[phase] = FAILURES[failure](fake)
        with connected(fake, connection=ConnectionConfig()) as transport:
            assert numbers(transport, 8) == list(range(8))


@pytest.mark.parametrize("phase", SHARING[:2])
def test_a_server_that_dies_while_memory_is_shared(phase: str) -> None:
    with FakeTriton() as fake:
        fake.rules[phase] = dies(fake)
        with (
            pytest.raises(NoResponseError, match="no server has answered for"),
            connected(fake, connection=SHORT, no_response_timeout_s=0.5) as transport,
        ):
            numbers(transport)


WITHOUT_CARD = {("ModelConfig", "nonsense"), ("ModelMetadata", "nonsense")}
"""An entry without card or version is a fault of the repository, which is told before any work."""


@pytest.mark.parametrize(
    ("phase", "failure"),
    sorted(set(itertools.product([*CONNECTING, *SHARING, "ModelInfer"], FAILURES)) - WITHOUT_CARD),
)
def test_a_healthy_server_does_the_work_of_one_that_fails(phase: str, failure: str) -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules[phase] = FAILURES[failure](fake)
        with connected(fake, healthy, connection=SHORT) as transport:
            assert numbers(transport) == list(range(30))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_begins_to_fail_in_the_middle_costs_nothing(failure: str) -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        failing, well = FAILURES[failure](fake), iter(range(5))
        fake.rules["ModelInfer"] = lambda request, context, answer: (
            answer() if next(well, None) is not None else failing(request, context, answer)
        )
        with connected(fake, healthy, connection=SHORT) as transport:
            assert numbers(transport) == list(range(30))
        assert next(well, None) is None


# Commands -----------------------------------------------------------------------------------------------------


def labels(shape: tuple[int, int, int] = (9, 11, 8)) -> NDArray[np.int16]:
    """A scan of zeros and ones that is like no flip of itself: the fake's network gives it back as the labels."""
    return (np.random.default_rng(3).random(shape) < 0.4).astype(np.int16)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    file = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(labels(), np.diag([1.0, 1.2, 0.9, 1.0])), file)
    return file


@pytest.mark.parametrize("failure", FAILURES)
def test_the_command_writes_one_line_or_the_right_mask(scan: Path, failure: str) -> None:
    mask = scan.with_name("mask.nii")
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = FAILURES[failure](fake)
        words = ("segment", scan, "-o", mask, "-m", "model", "--timeout", 0.5, "--url", fake.url)
        result = run(*words, "--no-response-timeout", 0.5)
        assert result.exit_code in (2, 3), (result.output, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.startswith("voxtile: ")
        assert result.stderr.count("\n") == 1
        assert not mask.exists()
        if failure != "dies":
            assert run(*words, "--url", healthy.url).exit_code == 0
            np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), labels())


@pytest.mark.parametrize("code", [CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED])
def test_a_wrong_token_is_one_line_in_every_command(scan: Path, code: grpc.StatusCode) -> None:
    commands: dict[str, tuple[object, ...]] = {
        "segment": (scan, "-o", scan.with_name("mask.nii"), "-m", "model"),
        "batch": (scan.parent, scan.parent / "masks", "-m", "model"),
        "load-test": (scan, "-m", "model"),
        "prepare": (scan, "-o", scan.with_name("case.nii.gz"), "-m", "model"),
        "models": (),
        "doctor": (),
    }
    with FakeTriton() as fake:
        for call in ("ServerLive", "RepositoryIndex", "ModelConfig", "ModelMetadata", "ModelInfer"):
            fake.rules[call] = fails(code, "no such token")
        for command, arguments in commands.items():
            result = run(command, *arguments, "--url", fake.url, "--header", "token:secret-1")
            assert result.exit_code == 2, (command, result.output, result.exception)
            [line] = result.output.splitlines()
            assert f"{fake.url}: the server refuses access (no such token)" in line
            assert "--header NAME:VALUE" in line
            assert "secret-1" not in line
        # One call a command; the two that list models ask once more: a server may refuse the list of its files alone.
        assert len(fake.calls) == len(commands) + 2
        fake.rules = {"ModelInfer": fails(code, "no such token")}
        for command in ("segment", "load-test"):
            result = run(command, *commands[command], "--url", fake.url)
            assert result.exit_code == 2, (command, result.output, result.exception)
            assert "the server refuses access (no such token)" in result.stderr
        assert run("batch", *commands["batch"], "--url", fake.url).exit_code == 1


def test_one_entry_that_fails_hides_no_other(scan: Path) -> None:
    with FakeTriton() as fake:
        fake.rules["ModelConfig"] = fails(CODE.INTERNAL, "no memory", first=1)
        result = run("models", "--url", fake.url, "--json")
        assert result.exit_code == 0, result.output
        assert "fails to answer (no memory)" in result.stdout


# The policy ---------------------------------------------------------------------------------------------------


def test_every_call_of_every_kind_carries_the_headers_and_a_deadline() -> None:
    connection = ConnectionConfig(headers={"token": "abc", "x-team": "two words"}, deadline_s=77.0, shared_memory=True)
    with FakeTriton() as fake:
        with connected(fake, connection=connection) as transport:
            assert numbers(transport) == list(range(30))
        with contextlib.closing(Endpoint(fake.url, connection)) as one:
            one.models()
            assert one.can_share_memory()
        seen = {call.method for call in fake.calls}
        assert {*CONNECTING, *SHARING, "RepositoryIndex", "ModelInfer"} <= seen
        for call in fake.calls:
            most = 78.0 if call.method == "ModelInfer" else 11.0  # clocks differ a little
            assert call.seconds_left is not None, call.method
            assert call.seconds_left <= most, call.method
            assert (call.headers.get("token"), call.headers.get("x-team")) == ("abc", "two words"), call.method


class Counter:
    """Passes bytes on to a port of this machine, and counts those that come in."""

    def __init__(self, port: int) -> None:
        self.port, self.bytes = port, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.listening.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                self.bytes += len(data) * counted
                target.sendall(data)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression_is_used_where_it_is_asked_for(compression: Any) -> None:
    def sent(connection: ConnectionConfig) -> int:
        counter = Counter(int(fake.url.rpartition(":")[2]))
        with contextlib.closing(counter.listening), connected(counter.url, connection=connection) as transport:
            assert numbers(transport) == list(range(30))
        return counter.bytes

    with FakeTriton() as fake:
        plain = sent(PLAIN)
        assert plain > 30 * 2 * 4 * np.prod(ROI)
        assert sent(ConnectionConfig(shared_memory=False, compression=compression)) < plain / 2


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda answer: answer.outputs[0].shape.__setitem__(0, 1),
        lambda answer: answer.outputs[0].shape.append(1),
        lambda answer: setattr(answer.outputs[0], "datatype", "INT32"),
        lambda answer: setattr(answer.outputs[0], "datatype", "BYTES"),
        lambda answer: setattr(answer.outputs[0], "name", "other"),
        lambda answer: answer.outputs.pop(),
        lambda answer: answer.raw_output_contents.pop(),
        lambda answer: answer.raw_output_contents.__setitem__(0, answer.raw_output_contents[0][:-3]),
        lambda answer: answer.raw_output_contents.__setitem__(0, answer.raw_output_contents[0] + b"four"),
        lambda answer: answer.raw_output_contents.__setitem__(0, np.full(240, np.nan, np.float32).tobytes()),
        lambda answer: answer.raw_output_contents.__setitem__(0, np.full(240, -np.inf, np.float32).tobytes()),
        lambda answer: setattr(answer, "id", "1"),
        lambda answer: setattr(answer, "model_name", "another"),
        lambda answer: setattr(answer, "model_version", "2"),
    ],
    ids=[
        "shape", "axes", "dtype", "bytes", "name", "missing", "empty", "short", "long", "nan", "infinite", "id",
        "model", "version",
    ],
)  # fmt: skip
def test_a_wrong_answer_is_asked_for_elsewhere_and_never_taken(spoilt: Callable[[Any], object]) -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"], traffic = changed(spoilt), Traffic()
        with connected(fake, healthy) as transport:
            assert numbers(transport, traffic=traffic) == list(range(30))
        assert traffic.retries > 0


def test_a_server_that_answers_wrongly_for_ever_ends_the_scan_with_what_is_wrong() -> None:
    with FakeTriton() as fake:
        fake.rules["ModelInfer"] = changed(lambda answer: setattr(answer.outputs[0], "datatype", "INT32"))
        with (
            connected(fake) as transport,
            pytest.raises(
                TileError,
                match=r"failed 4 times, last at 127.*: expected scores of FP32 \[2, 1, 4, 5, 6\], found INT32 .*log",
            ),
        ):
            numbers(transport)


def test_a_broken_server_is_tried_little_and_no_tile_twice_there_before_the_other() -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = fails(CODE.INTERNAL)
        with connected(fake, healthy) as transport:
            assert numbers(transport, 300) == list(range(300))
        tried = [call.request.raw_input_contents[0] for call in fake.calls if call.method == "ModelInfer"]
        assert 0 < len(tried) < 60
        assert len(set(tried)) == len(tried)


def test_a_backend_that_dies_again_and_again_costs_no_tile_its_tries() -> None:
    """Triton starts its process again each time; both servers' die more often than a request may fail."""
    died = "Stub process 'unet_0_0' is not healthy."
    with FakeTriton() as one, FakeTriton() as other:
        one.rules["ModelInfer"], other.rules["ModelInfer"] = (fails(CODE.INTERNAL, died, first=12) for _ in range(2))
        with connected(one, other, tries=1) as transport:
            assert numbers(transport, 3) == list(range(3))
        one.rules["ModelInfer"] = fails(CODE.INTERNAL, died)
        with connected(one, no_response_timeout_s=0.7) as transport, pytest.raises(NoResponseError, match="healthy"):
            numbers(transport)
        assert one.count("ModelInfer") < 60


def test_a_tile_that_failed_goes_to_a_server_that_has_not_failed_at_it() -> None:
    """The server that fails at every second tile is as good as the other at the rest, and never rests."""

    def odd_ones(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        if np.frombuffer(request.raw_input_contents[0], np.float32)[0] % 2:
            context.abort(CODE.INTERNAL, "not the odd ones")
        return answer()

    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = odd_ones
        with connected(fake, healthy) as transport:
            assert numbers(transport, 200) == list(range(200))
        tried = [call.request.raw_input_contents[0] for call in fake.calls if call.method == "ModelInfer"]
        assert len(set(tried)) == len(tried)


def test_a_tile_that_every_server_fails_ends_with_its_reason_and_costs_each_its_tries() -> None:
    def only_tile_7(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        if np.frombuffer(request.raw_input_contents[0], np.float32)[0] == 7:
            context.abort(CODE.INTERNAL, "not this one")
        return answer()

    with FakeTriton() as one, FakeTriton() as other:
        one.rules["ModelInfer"] = other.rules["ModelInfer"] = only_tile_7
        traffic = Traffic()
        with (
            connected(one, other, tries=2) as transport,
            pytest.raises(TileError, match=r"'model': request 7 \(2 tiles\) failed 4 times, last at .*: not this one;"),
        ):
            numbers(transport, traffic=traffic)
        assert traffic.retries == 3
        other.rules.clear()
        with connected(one, other, tries=2) as transport:
            assert numbers(transport) == list(range(30))


def test_what_a_server_refuses_is_never_sent_to_it_again() -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = fails(CODE.INVALID_ARGUMENT, "not for me")
        with connected(fake) as transport, pytest.raises(TileError, match=r"failed 1 time, .*: not for me"):
            numbers(transport, 1)
        assert fake.count("ModelInfer") == 1
        with connected(fake, healthy) as transport:
            assert numbers(transport) == list(range(30))
        tried = [call.request.raw_input_contents[0] for call in fake.calls if call.method == "ModelInfer"][1:]
        assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (CODE.RESOURCE_EXHAUSTED, "too many requests"),
        (CODE.UNAVAILABLE, "[request id: 3] Exceeds maximum queue size"),
        (CODE.UNAVAILABLE, "Request timeout expired"),
    ],
)
def test_a_full_queue_slows_down_and_ends_after_the_timeout(code: grpc.StatusCode, text: str) -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = fails(code, text)
        with connected(fake, no_response_timeout_s=0.7) as transport:
            with pytest.raises(NoResponseError, match=rf"no server has answered for 1 s.*{text.rpartition(']')[2]}"):
                numbers(transport)
            assert fake.count("ModelInfer") < 12
        with connected(fake, healthy) as transport:
            assert numbers(transport) == list(range(30))
        fake.rules["ModelInfer"] = fails(code, text, first=4)
        traffic = Traffic()
        with connected(fake) as transport:
            assert numbers(transport, traffic=traffic) == list(range(30))
        assert traffic.retries == 4


def test_a_limit_on_messages_is_named_at_once() -> None:
    big = Request(0, np.zeros((40, 1, *ROI), np.float32), None)
    with FakeTriton(max_message_bytes=4096) as proxy, FakeTriton() as healthy:
        with (
            connected(proxy) as transport,
            pytest.raises(TileError, match=r"failed 1 time.*\(\d+ vs. 4096\).*--sw-batch-size"),
        ):
            list(transport.infer(iter([big])))
        with connected(proxy, healthy) as transport:
            [scores] = transport.infer(iter([big]))
        assert scores.shape == big.roi.shape


def frame_types(received: bytes) -> list[int]:
    """The types of the whole frames that a client of HTTP/2 has sent, behind its greeting of 24 bytes."""
    found, at = [], 24
    while at + 9 <= len(received):
        found.append(received[at + 3])
        at += 9 + int.from_bytes(received[at : at + 3], "big")
    return found


def test_a_proxys_answer_in_plain_http_is_read_by_its_status() -> None:
    """Here 413, in HTTP/2's own bytes: settings, their acknowledgement, and headers with the status alone."""
    settings = bytes.fromhex("000000040000000000000000040100000000")
    headers = bytes.fromhex("0000050105000000010803343133")

    def answer(listening: socket.socket) -> None:
        near, _ = listening.accept()
        with near:
            near.sendall(settings)
            got = b""
            while 1 not in frame_types(got):  # until the request's headers are there
                got += near.recv(65536)
            near.sendall(headers)
            while near.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        one = Endpoint(f"127.0.0.1:{listening.getsockname()[1]}", PLAIN)
        with pytest.raises(ServerUnavailable, match="status: 413"):
            one.check_live()
        one.close()
        thread.join()


def test_a_slow_server_is_waited_for_and_a_slow_caller_too() -> None:
    def slow(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        time.sleep(0.3)
        return answer()

    with FakeTriton() as fake:
        fake.rules["ModelInfer"] = slow
        with connected(fake, no_response_timeout_s=5.0) as transport:
            assert numbers(transport, 4) == list(range(4))
        fake.rules.clear()
        with connected(fake, no_response_timeout_s=0.5) as transport:
            answers = transport.infer(requests(60))
            for index, scores in enumerate(answers):
                assert scores.mean() == index
                if index == 3:
                    time.sleep(1.2)  # longer than a server may be silent


def test_a_silent_request_ends_at_its_deadline_and_goes_elsewhere() -> None:
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = silent(fake)
        with connected(fake, healthy, connection=ConnectionConfig(shared_memory=False, deadline_s=0.3)) as transport:
            assert numbers(transport) == list(range(30))
        with (
            connected(fake, connection=ConnectionConfig(shared_memory=False, deadline_s=0.2)) as transport,
            pytest.raises(TileError, match=r"failed 4 times.*took too long; allow more time with --timeout"),
        ):
            numbers(transport)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_answers_out_of_order_are_put_into_order(shared_memory: bool) -> None:
    jitter = random.Random(4)

    def late(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        time.sleep(jitter.choice([0, 0, 0.01, 0.03]))
        return answer()

    with FakeTriton() as one, FakeTriton() as other:
        one.rules["ModelInfer"] = other.rules["ModelInfer"] = late
        with connected(one, other, connection=ConnectionConfig(shared_memory=shared_memory)) as transport:
            assert numbers(transport, 60) == list(range(60))


# Servers that go and come -------------------------------------------------------------------------------------


def taking(transport: GrpcTransport, at: int, event: Callable[[], object], in_flight: int = 8) -> list[float]:
    """The numbers of 60 requests, where `event` happens when number `at` has been taken."""
    found = []
    for scores in transport.infer(requests(60), in_flight):
        found.append(float(scores.mean()))
        if len(found) == at:
            event()
    return found


def restarts(fake: FakeTriton, **card: Any) -> Rule:
    """A rule by which the server dies in its fifth call, and comes back, with a changed card."""
    calls = itertools.count(1)

    def again() -> None:
        fake.die()
        fake.card.update(card)
        fake.start()

    def rule(request: Any, context: Any, answer: Callable[[], Any]) -> Any:
        if next(calls) == 5:
            threading.Thread(target=again).start()
            broken_off(context)
        return answer()

    return rule


@pytest.mark.parametrize("shared_memory", [None, False])
def test_a_server_that_dies_and_returns(shared_memory: bool | None) -> None:
    with (
        FakeTriton() as fake,
        connected(fake, connection=ConnectionConfig(shared_memory=shared_memory)) as transport,
    ):
        for _ in range(2):
            fake.rules["ModelInfer"], traffic = restarts(fake), Traffic()
            assert numbers(transport, traffic=traffic) == list(range(30))
            assert traffic.retries > 0


@pytest.mark.parametrize("shared_memory", [None, False])
def test_a_server_that_returns_with_another_build_is_not_used(
    shared_memory: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    connection = ConnectionConfig(shared_memory=shared_memory)
    with FakeTriton() as fake, FakeTriton() as healthy:
        fake.rules["ModelInfer"] = restarts(fake, title="another")
        with connected(fake, healthy, connection=connection) as transport:
            assert numbers(transport, 100) == list(range(100))
            before = fake.count("ModelInfer")
            for _ in range(3):
                assert numbers(transport) == list(range(30))  # nor in the next scans
            assert fake.count("ModelInfer") == before
        assert caplog.text.count(f"{fake.url} serves another build of model 'model'") <= 1
        fake.rules["ModelInfer"] = restarts(fake, title="a third")
        with (
            connected(fake, connection=connection) as transport,
            pytest.raises(OtherBuildError, match=r"serves another build of model 'model' than when this client"),
        ):
            numbers(transport)


def test_a_model_that_is_replaced_in_place_is_noticed_at_the_end() -> None:
    """No call fails: the server loads the new build while it goes on."""
    with FakeTriton() as fake, FakeTriton() as healthy:
        for servers in ([fake], [fake, healthy]):
            with connected(*servers) as transport:
                with pytest.raises(OtherBuildError, match="serves another build"):
                    taking(transport, 9, lambda: fake.card.update(title="another"))
                before = fake.count("ModelInfer")
                if len(servers) == 2:
                    assert numbers(transport) == list(range(30))
                else:
                    with pytest.raises(OtherBuildError):
                        numbers(transport)
                assert fake.count("ModelInfer") == before
            del fake.card["title"]
        with RemoteNetwork(fake.url, "model", connection=PLAIN) as network:
            fake.card["title"] = "another"
            with pytest.raises(OtherBuildError):
                network(np.zeros((9, 1, *ROI), np.float32))


def test_a_scan_of_two_builds_gives_no_mask() -> None:
    image = nib.Nifti1Image(labels(), np.eye(4))
    with (
        FakeTriton() as fake,
        Segmenter(fake.url, "model", connection=PLAIN) as segmenter,
        pytest.raises(OtherBuildError),
    ):
        segmenter.segment(image, lambda done, _: fake.card.update(title=f"build {done}"))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_a_newer_version_with_the_same_card_is_taken_up(alone: bool, in_flight: int) -> None:
    def another_version() -> None:
        fake.version = "2"

    with FakeTriton() as fake, FakeTriton() as healthy, connected(*([fake] if alone else [fake, healthy])) as transport:
        assert taking(transport, 9, another_version, in_flight=in_flight) == list(range(60))


def test_a_server_that_was_not_there_at_first_is_asked_before_it_is_used() -> None:
    with FakeTriton() as late, FakeTriton() as healthy:
        late.die()
        with connected(late, healthy, connection=SHORT) as transport:
            late.card["title"] = "another"
            late.start()
            assert numbers(transport) == list(range(30))
            assert late.count("ModelInfer") == 0
            late.die()
            del late.card["title"]
            late.start()
            healthy.rules["ModelInfer"] = silent(healthy)  # so that the other one has to do it
            assert numbers(transport) == list(range(30))
            assert late.count("ModelInfer") == 30


def test_two_servers_with_different_cards_are_refused() -> None:
    with FakeTriton() as one, FakeTriton(title="another") as other:
        with pytest.raises(ModelError, match=r"serve different builds of 'model'; give every server the same"):
            connect_transport([one.url, other.url], "model")
        result = run("doctor", "--url", one.url, "--url", other.url, "-m", "model")
        assert result.exit_code == 2
        assert "they serve different builds of 'model'" in result.output


def test_an_entry_is_asked_under_its_own_name_whatever_its_card_says() -> None:
    with FakeTriton(name="renamed") as fake:
        fake.rules["ModelConfig"] = changed(
            lambda answer: setattr(
                answer.config.parameters["card"],
                "string_value",
                answer.config.parameters["card"].string_value.replace('"name": "renamed"', '"name": "original"'),
            )
        )
        with connect_transport(fake.url, "renamed", PLAIN) as transport:
            assert numbers(transport) == list(range(30))


# Addresses ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def gibberish() -> Iterator[str]:
    """The address of a server that speaks no gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listening.accept()
                    with near:
                        near.recv(4096)
                        near.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("server", [deaf, gibberish])
def test_what_is_no_triton_is_named_and_another_server_used(server: Any) -> None:
    with server() as url, FakeTriton() as healthy:
        with pytest.raises(ServerUnavailable, match=f"no Triton server answers gRPC at {url} .*--url HOST:PORT"):
            connect_transport(url, "model")
        with connected(url, healthy) as transport:
            assert numbers(transport) == list(range(30))


def test_a_server_that_says_it_is_not_alive() -> None:
    with FakeTriton() as fake:
        fake.rules["ServerLive"] = changed(lambda answer: setattr(answer, "live", False))
        with pytest.raises(ServerUnavailable, match="says that it is not alive"):
            connect_transport(fake.url, "model")


# Leaks --------------------------------------------------------------------------------------------------------


def open_connections(*servers: FakeTriton) -> int:
    ports = {int(one.url.rpartition(":")[2]) for one in servers}
    found = psutil.Process().net_connections("tcp")
    return sum(one.raddr != () and one.raddr.port in ports and one.status == "ESTABLISHED" for one in found)


def test_no_connection_outlives_a_failure(scan: Path) -> None:
    def nothing(_: object) -> None:
        raise RuntimeError("the caller broke off")

    with FakeTriton() as fake, FakeTriton(title="another") as other:
        failing: list[Callable[[], object]] = [
            lambda: connect_transport([fake.url, "nowhere"], "model"),
            lambda: connect_transport([fake.url, other.url], "model"),
            lambda: connect_transport(fake.url, "absent"),
            lambda: run_load_test([fake.url, "nowhere"], "model", scan),
            lambda: run_load_test([fake.url], "model", scan.with_name("absent.nii")),
            lambda: nothing([connect_transport(fake.url, "model").close()]),
        ]
        for one in failing:
            with pytest.raises((VoxtileError, RuntimeError)):
                one()
        run("doctor", scan, "--url", fake.url, "--url", other.url, "-m", "absent")
        run("models", "--url", fake.url, "--url", "127.0.0.1:9")
        deadline = time.monotonic() + 20
        while open_connections(fake, other) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert open_connections(fake, other) == 0
