"""Tiles inside Triton: a request that fails is sent again, a few times; answers keep their order.

Triton's Python interface exists only in its stubs, and a real server does not fail on demand: a module stands in.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.phantoms import card_of
from voxtile.errors import TileError
from voxtile.triton.types import Request, ServedModel, Traffic

Answer = Callable[[int, int], Any]
"""Called as answer(tile, try): scores of the tile, or the text of an error."""


class Asked:
    """What the stand-in was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.tries: dict[int, int] = {}
        self.running = self.most = 0
        self.lock = threading.Lock()


def module_of(asked: Asked) -> types.ModuleType:
    """`triton_python_backend_utils` as far as BLS needs it."""

    class Tensor:
        def __init__(self, name: str, values: Any) -> None:
            self.name, self.values = name, values

        def as_numpy(self) -> Any:
            return self.values

    class Response:
        def __init__(self, found: Any) -> None:
            self.found = found

        def has_error(self) -> bool:
            return isinstance(self.found, str)

        def error(self) -> Any:
            return types.SimpleNamespace(message=lambda: self.found)

    class InferenceRequest:
        def __init__(self, *, inputs: list[Tensor], **_: Any) -> None:
            self.tile = int(inputs[0].values.flat[0])

        def exec(self) -> Response:
            with asked.lock:
                count = asked.tries[self.tile] = asked.tries.get(self.tile, 0) + 1
                asked.running += 1
                asked.most = max(asked.most, asked.running)
            try:
                return Response(asked.answer(self.tile, count))
            finally:
                with asked.lock:
                    asked.running -= 1

    module = types.ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor,
        InferenceRequest=InferenceRequest,
        PreferredMemory=lambda *_: None,
        TRITONSERVER_MEMORY_CPU=0,
        get_output_tensor_by_name=lambda response, _: Tensor("scores", response.found),
    )
    return module


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, Asked]]]:
    def make(answer: Answer, at_once: int | None = None) -> tuple[Any, Asked]:
        asked = Asked(answer)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module_of(asked))
        from voxtile_server.backends.voxtile import bls

        monkeypatch.setattr(bls, "pause_s", lambda _: 0.0)
        card = card_of()
        return bls.BlsTransport(ServedModel(card, "1", 1, ""), at_once), asked

    yield make
    for name in [name for name in sys.modules if name.startswith("voxtile_server.backends.voxtile")]:
        del sys.modules[name]


def requests(count: int) -> Iterator[Request]:
    for index in range(count):
        yield Request(index, np.full((1, 1, 2, 2, 2), index, np.float32), None)


def scores(tile: int) -> Any:
    return np.full((1, card_of().output.scores, 2, 2, 2), tile, np.float32)


def test_answers_keep_their_order_and_no_more_are_on_their_way_than_asked_for(transport: Any) -> None:
    made, asked = transport(lambda tile, _: scores(tile))
    traffic = Traffic()
    found = [int(one.flat[0]) for one in made.infer(requests(30), 3, traffic)]
    assert found == list(range(30))
    assert 1 <= asked.most <= 3
    assert (traffic.requests, traffic.retries) == (30, 0)
    assert traffic.bytes_received == 30 * scores(0).nbytes


def test_a_tile_that_fails_three_times_is_sent_a_fourth_time(transport: Any) -> None:
    made, asked = transport(lambda tile, count: "no" if tile == 2 and count < 4 else scores(tile))
    traffic = Traffic()
    assert [int(one.flat[0]) for one in made.infer(requests(5), 2, traffic)] == list(range(5))
    assert asked.tries[2] == 4
    assert traffic.retries == 3


def test_a_tile_that_fails_every_time_ends_the_scan_with_what_was_said(transport: Any) -> None:
    made, asked = transport(lambda tile, _: "the stub is gone" if tile == 1 else scores(tile))
    with pytest.raises(TileError, match=r"request 1 failed 4 times: the stub is gone"):
        list(made.infer(requests(500), 2))
    assert asked.tries[1] == 4
    assert len(asked.tries) < 10


def test_scores_of_another_build_are_refused(transport: Any) -> None:
    made, _ = transport(lambda *_: np.zeros((1, 99, 2, 2, 2), np.float32))
    with pytest.raises(TileError, match="built again"):
        list(made.infer(requests(1), 1))


def test_closing_asks_for_no_more(transport: Any) -> None:
    made, asked = transport(lambda tile, _: scores(tile))
    answers = made.infer(requests(500), 2)
    next(answers)
    answers.close()
    assert len(asked.tries) < 10
    assert asked.running == 0


def test_no_more_are_inside_triton_than_keep_the_engine_busy(transport: Any) -> None:
    """What is inside cannot be cancelled; requests beyond these are made, and wait outside."""
    made, asked = transport(lambda tile, _: time.sleep(0.01) or scores(tile), at_once=2)
    count = itertools.count()
    answers = made.infer((request for request in requests(30) if next(count) >= 0), 8)
    first = next(answers)
    assert next(count) >= 8
    assert [int(one.flat[0]) for one in (first, *answers)] == list(range(30))
    assert asked.most == 2


DEAD = "in ensemble 'a', Stub process 'a_onnxruntime_0_0' is not healthy."


def test_an_engine_whose_only_process_has_died_ends_the_scan_at_once(transport: Any) -> None:
    made, asked = transport(lambda tile, _: DEAD if tile >= 3 else scores(tile))
    with pytest.raises(TileError, match=r"request 3 failed once: .*is not healthy"):
        list(made.infer(requests(500), 1))
    assert asked.tries[3] == 1


def test_a_tile_that_was_to_be_sent_again_when_a_later_one_failed_for_good_tells_of_that(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no end of the answers, which the caller would take for one of its own making."""
    paused = threading.Event()

    class Late(threading.Event):
        """Its waiting ends with nothing set, just before it is set."""

        def wait(self, timeout: float | None = None) -> bool:
            paused.set()
            super().wait(10)
            return False

    made, asked = transport(lambda tile, _: "no" if tile == 0 else paused.wait(10) and DEAD)
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Event", Late)
        answers = made.infer(requests(2), 2)
    with pytest.raises(TileError, match=r"request 1 failed once: .*is not healthy"):
        next(answers)
    assert asked.tries[0] == 1


def test_an_engine_of_which_another_process_lives_goes_on(transport: Any) -> None:
    died = [threading.Event(), threading.Event()]
    answered = [threading.Event() for _ in range(3)]

    def answer(tile: int, count: int) -> Any:
        if tile == 0 and count < 3:
            answered[count - 1].wait(10)  # another process has answered since it died last
            time.sleep(0.05)
            died[count - 1].set()
            return DEAD
        third = (tile - 1) // 20
        if third > 0:
            died[third - 1].wait(10)
        answered[max(third, 0)].set()
        return scores(tile)

    made, asked = transport(answer)
    assert [int(one.flat[0]) for one in made.infer(requests(60), 60)] == list(range(60))
    assert asked.tries[0] == 3


def test_another_thread_may_close_while_one_waits(transport: Any) -> None:
    """As a caller that goes away does."""
    release = threading.Event()
    made, asked = transport(lambda tile, _: release.wait(10) and scores(tile), at_once=1)
    answers = made.infer(requests(500), 8)
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.extend(int(one.flat[0]) for one in answers))
    waiting.start()
    while not asked.running:
        time.sleep(0.001)
    closing = threading.Thread(target=answers.close)
    closing.start()
    time.sleep(0.05)
    release.set()
    for thread in (closing, waiting):
        thread.join(10)
        assert not thread.is_alive()
    assert found in ([], [0])
    assert list(asked.tries) == [0]
    assert list(answers) == []


def test_pauses_between_tries_end_when_it_is_closed(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = transport(lambda *_: "no")
    monkeypatch.setattr("voxtile_server.backends.voxtile.bls.pause_s", lambda _: 3600.0)
    answers = made.infer(requests(5), 2)

    def wait() -> None:
        with pytest.raises(TileError, match="failed once"):
            next(answers)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not asked.tries:
        time.sleep(0.001)
    answers.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert all(tries == 1 for tries in asked.tries.values())
