"""Several servers as one: what they must agree on, who is told of, and that nothing stays open."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.fake_triton import ROI, FakeTriton, changed, fails, silent
from voxtile import (
    AccessError,
    ConnectionConfig,
    InputError,
    ModelError,
    Request,
    ServerUnavailable,
    TileError,
    Traffic,
)
from voxtile.triton import grpc_transport
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import GrpcAnswers, GrpcTransport, connect_transport
from voxtile.triton.retry import RetryPolicy

CODE = grpc.StatusCode
PLAIN = ConnectionConfig(shared_memory=False)
NOBODY = "127.0.0.1:9"


def requests(count: int) -> Iterator[Request]:
    """Each holds its own number."""
    for index in range(count):
        yield Request(index, np.full((2, 1, *ROI), index, np.float32), None)


def numbers(transport: GrpcTransport, count: int = 12, **options: Any) -> list[float]:
    return [float(scores.mean()) for scores in transport.infer(requests(count), **options)]


def pumps() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "voxtile-pump"]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the endpoints that have been closed."""
    found: list[str] = []
    real = Endpoint.close

    def close(self: Endpoint) -> None:
        found.append(self.url)
        real(self)

    monkeypatch.setattr(Endpoint, "close", close)
    return found


# Connecting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "model", "missing"),
    [
        (None, "model", "no address"),
        ([], "model", "no address"),
        ("", "model", "''"),
        (NOBODY, None, "no model's name"),
        (None, None, "no address"),
    ],
)
def test_what_is_missing_is_named(url: Any, model: Any, missing: str) -> None:
    with pytest.raises(InputError, match=rf"^expected .*HOST:PORT of .*, found {missing}$"):
        connect_transport(url, model)


def test_one_address_or_several_are_used_in_their_order() -> None:
    with FakeTriton() as one, FakeTriton() as other:
        for urls, servers in ((one.url, [one.url]), ((other.url, one.url), [other.url, one.url])):
            with connect_transport(urls, "model") as transport:
                assert transport.servers == servers
                assert transport.model.card.name == "model"
                assert numbers(transport) == list(range(12))


def test_the_smallest_batch_that_any_server_takes_is_sent_to_all() -> None:
    with FakeTriton() as one, FakeTriton() as other:
        for takes in ((3, 8), (8, 2)):
            for fake, size in zip((one, other), takes, strict=True):
                fake.rules["ModelConfig"] = changed(
                    lambda answer, size=size: setattr(answer.config, "max_batch_size", size)
                )
            with connect_transport([one.url, other.url], "model") as transport:
                assert transport.model.max_batch_size == min(takes)


def test_servers_with_different_builds_are_refused_and_closed(closed: list[str]) -> None:
    with FakeTriton() as one, FakeTriton(title="another") as other:
        with pytest.raises(ModelError) as caught:
            connect_transport([one.url, other.url], "model")
        assert str(caught.value) == (
            f"the servers {one.url}, {other.url} serve different builds of 'model'; give every server the same "
            "repository"
        )
        assert {one.url, other.url} <= set(closed)


def test_a_name_that_stands_for_another_build_has_moved_and_one_that_cannot_be_asked_has_not() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model") as transport:
        assert not transport.has_moved()
        fake.rules["ModelConfig"] = fails(grpc.StatusCode.UNAVAILABLE)
        assert not transport.has_moved()
        fake.rules.clear()
        fake.card = {**fake.card, "title": "another"}
        assert transport.has_moved()


def test_a_server_that_is_not_there_is_told_of_and_the_others_used(caplog: pytest.LogCaptureFixture) -> None:
    with FakeTriton() as fake, connect_transport([NOBODY, fake.url], "model") as transport:
        assert numbers(transport) == list(range(12))
        [told] = [record.getMessage() for record in caplog.records]
        assert told.startswith(f"no Triton server answers gRPC at {NOBODY} (")
        assert told.endswith("; going on without it")
        assert [endpoint.serves_model for endpoint in transport._endpoints] == [False, True]
        assert fake.count("ModelConfig") == 2  # at the beginning, and at the scan's end


def test_where_none_is_there_the_first_is_named_unless_one_refuses_access() -> None:
    with pytest.raises(ServerUnavailable, match=f"at {NOBODY} "):
        connect_transport([NOBODY, "127.0.0.1:7"], "model")
    with FakeTriton() as fake:
        fake.rules["ServerLive"] = fails(CODE.UNAUTHENTICATED)
        with pytest.raises(AccessError, match=fake.url):
            connect_transport([NOBODY, fake.url], "model")


def test_a_server_without_the_model_is_an_error_however_many_have_it(closed: list[str]) -> None:
    with FakeTriton() as one, FakeTriton(name="another") as other:
        with pytest.raises(ModelError, match=f"'model' is not offered by {other.url}"):
            connect_transport([one.url, other.url], "model")
        assert {one.url, other.url} <= set(closed)


def test_an_address_that_is_none_closes_those_before_it(closed: list[str]) -> None:
    with FakeTriton() as fake:
        with pytest.raises(InputError, match="found 'nowhere'"):
            connect_transport([fake.url, "nowhere"], "model")
        assert closed == [fake.url]


def test_the_way_to_a_server_and_the_limits_of_retries_are_those_asked_for() -> None:
    with FakeTriton() as fake:
        fake.rules["ModelInfer"] = fails(CODE.ABORTED, "no")
        connection = ConnectionConfig(headers={"token": "abc"}, shared_memory=False)
        with (
            connect_transport(fake.url, "model", connection, RetryPolicy(tries=2)) as transport,
            pytest.raises(TileError, match="failed 2 times"),
        ):
            numbers(transport, 1)
        assert {call.headers["token"] for call in fake.calls} == {"abc"}
        assert fake.count("ModelInfer") == 2


# A scan ------------------------------------------------------------------------------------------------------


def test_traffic_is_counted_where_it_is_asked_for() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        traffic = Traffic()
        assert numbers(transport, 5, traffic=traffic, in_flight=1) == list(range(5))
        assert (traffic.requests, traffic.peak_in_flight, traffic.shared_memory) == (5, 1, False)
        assert traffic.bytes_sent == 5 * 2 * 120 * 4


def test_as_many_as_allowed_are_in_flight_to_a_server() -> None:
    busy, most, lock = [0], [0], threading.Lock()

    def counted(request: Any, context: Any, right: Any) -> Any:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.002)
        with lock:
            busy[0] -= 1
        return right()

    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        fake.rules["ModelInfer"] = counted
        numbers(transport, 30, in_flight=1)
        assert most == [1]
        numbers(transport, 30, in_flight=2)
        assert most == [2]


def test_a_finished_scan_has_no_thread_and_gives_nothing_more() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        answers = transport.infer(requests(30))
        assert iter(answers) is answers
        assert pumps()  # it waits for the caller to take some
        assert len(list(answers)) == 30
        assert not pumps()
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(answers)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_scan_that_is_given_up_ends_its_thread_and_what_is_in_flight(how: str) -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        answers = transport.infer(requests(100))
        next(answers)
        fake.rules["ModelInfer"] = silent(fake)
        if how == "closed":
            answers.close()
            answers.close()
            with pytest.raises(StopIteration):
                next(answers)
        else:
            del answers
            gc.collect()
        assert not pumps()


def test_one_that_waits_is_woken_when_another_closes() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        fake.rules["ModelInfer"] = silent(fake)
        answers = transport.infer(requests(3))
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.extend(answers))
        waiting.start()
        while not fake.count("ModelInfer"):
            time.sleep(0.005)
        answers.close()
        waiting.join(30)
        assert not waiting.is_alive()
        assert found == []


def test_an_error_ends_the_thread() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        fake.rules["ModelInfer"] = fails(CODE.INVALID_ARGUMENT, "no")
        answers = transport.infer(requests(3))
        with pytest.raises(TileError, match="no"):
            next(answers)
        assert not pumps()
        with pytest.raises(StopIteration):
            next(answers)


def test_the_threads_are_no_reason_for_a_program_to_go_on() -> None:
    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:
        fake.rules["ModelInfer"] = silent(fake)
        answers = transport.infer(requests(3))
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "voxtile-pump")
        answers.close()


def test_at_the_interpreters_end_a_forgotten_scan_is_quiet() -> None:
    """Then what it needs may be gone. pytest makes an exception that nobody can catch an error."""

    class Ended:
        def start(self) -> None: ...

        def stop(self) -> None:
            raise TypeError("'NoneType' object is not callable")

    answers = GrpcAnswers(Ended())  # type: ignore[arg-type]
    del answers
    gc.collect()


# The end -----------------------------------------------------------------------------------------------------


def test_a_closed_transport_says_so_and_may_be_closed_again(closed: list[str]) -> None:
    with FakeTriton() as one, FakeTriton() as other:
        with connect_transport([one.url, other.url], "model") as transport:
            assert not closed
        assert sorted(closed) == sorted([one.url, other.url])
        transport.close()
        with pytest.raises(InputError) as caught:
            transport.infer(requests(1))
        assert str(caught.value) == f"the connection to {one.url}, {other.url} has been closed; make a new one"


def test_one_that_fails_to_close_keeps_no_other_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTriton() as one, FakeTriton() as other:
        transport = connect_transport([one.url, other.url], "model")
        first, second = transport._endpoints
        ended: list[str] = []

        def failing() -> None:
            ended.append("second")
            raise RuntimeError("no end")

        real = first.close
        monkeypatch.setattr(second, "close", failing)
        monkeypatch.setattr(first, "close", lambda: (ended.append("first"), real()))
        with pytest.raises(RuntimeError, match="no end"):
            transport.close()
        assert sorted(ended) == ["first", "second"]
        Endpoint.close(second)


def test_a_fork_is_told_so_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from voxtile import ForkError

    with FakeTriton() as fake, connect_transport(fake.url, "model", PLAIN) as transport:

        def forked(self: Endpoint) -> None:
            raise ForkError("a fork")

        monkeypatch.setattr(grpc_transport.Endpoint, "check_process", forked)
        with pytest.raises(ForkError):
            transport.infer(requests(1))
        assert not pumps()
        monkeypatch.undo()
