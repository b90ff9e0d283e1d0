"""Tiles inside Triton: a request that fails is sent again, a few times; answers keep their order.

Triton's Python interface exists only in its stubs, and a real server does not fail on demand: a module stands in.
"""

from __future__ import annotations

import sys
import threading
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
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], tuple[Any, Asked]]]:
    def make(answer: Answer) -> tuple[Any, Asked]:
        asked = Asked(answer)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module_of(asked))
        from voxtile_server.backends.voxtile import bls

        monkeypatch.setattr(bls, "pause_s", lambda _: 0.0)
        card = card_of()
        return bls.BlsTransport(ServedModel(card, "1", 1, "")), asked

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
