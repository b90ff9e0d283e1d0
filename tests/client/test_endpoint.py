"""One server: what it says it offers, what its failures mean for the user, and one request's way there and back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.support.fake_triton import ROI, FakeTriton, changed, fails, silent
from tests.support.scripted_memory import REFUSED, no_new_names
from tests.support.simulated_servers import MODEL
from voxtile import AccessError, ConnectionConfig, ForkError, ModelError, Request, ServerUnavailable, VoxtileError
from voxtile.errors import NoCardError
from voxtile.triton import endpoint as endpoint_module
from voxtile.triton.endpoint import Call, Endpoint

CODE = grpc.StatusCode
TILES = np.arange(2 * 120, dtype=np.float32).reshape(2, 1, *ROI)


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    with FakeTriton() as server, no_new_names():
        yield server


@contextlib.contextmanager
def to(fake: FakeTriton, **connection: Any) -> Iterator[Endpoint]:
    with contextlib.closing(Endpoint(fake.url, ConnectionConfig(**connection))) as one:
        yield one


# What it offers ----------------------------------------------------------------------------------------------


def test_a_model_is_read_as_the_server_has_it(fake: FakeTriton) -> None:
    fake.card["title"] = "Ventricles"
    with to(fake) as one:
        model = one.model("model")
        assert (model.card.title, model.version, model.max_batch_size) == ("Ventricles", "1", 4)
        assert model.card_text == one.card_text("model")
        assert '"title": "Ventricles"' in model.card_text
        assert one.models() == [("model", "READY")]
        assert one.config("model").name == "model"
        assert (one.url, one.serves_model, one.ruled_out) == (fake.url, False, "")
        assert model.server == "2.62.0"


def test_a_server_that_does_not_tell_its_version_serves_all_the_same(fake: FakeTriton) -> None:
    fake.rules["ServerMetadata"] = fails(CODE.PERMISSION_DENIED, "not for you")
    with to(fake) as one:
        assert one.model("model").server == ""


def test_the_last_of_several_versions_answers(fake: FakeTriton) -> None:
    fake.rules["ModelMetadata"] = changed(lambda answer: answer.versions.extend(["3", "12"]))
    with to(fake) as one:
        assert one.model("model").version == "12"


def test_a_name_that_moves_between_two_answers_is_the_version_that_its_card_is_of(fake: FakeTriton) -> None:
    fake.rules["ModelConfig"] = changed(lambda answer: answer.config.version_policy.specific.versions.append(1))
    fake.version = "2"
    with to(fake) as one:
        assert one.model("model").version == "1"


def test_a_model_without_batches_takes_one_tile(fake: FakeTriton) -> None:
    for said, taken in ((0, 1), (1, 1), (2, 2)):
        fake.rules["ModelConfig"] = changed(lambda answer, said=said: setattr(answer.config, "max_batch_size", said))
        with to(fake) as one:
            assert one.model("model").max_batch_size == taken


def test_a_card_is_known_by_the_name_it_was_asked_for(fake: FakeTriton) -> None:
    def renamed(answer: Any) -> None:
        card = answer.config.parameters["card"]
        card.string_value = card.string_value.replace('"name": "model"', '"name": "old"')

    fake.rules["ModelConfig"] = changed(renamed)
    with to(fake) as one:
        model = one.model("model")
    assert model.card.name == "model"
    assert '"name": "old"' in model.card_text


def test_an_entry_without_a_card_says_what_to_ask_for(fake: FakeTriton) -> None:
    fake.rules["ModelConfig"] = changed(lambda answer: answer.config.parameters.clear())
    with to(fake) as one:
        for ask in (one.model, one.card_text):
            with pytest.raises(NoCardError, match=f"^{fake.url} serves 'model', but its configuration carries no card"):
                ask("model")


def test_a_card_that_is_none_is_named(fake: FakeTriton) -> None:
    fake.rules["ModelConfig"] = changed(
        lambda answer: setattr(answer.config.parameters["card"], "string_value", "no JSON")
    )
    with to(fake) as one, pytest.raises(ModelError, match="model 'model': its card is not JSON"):
        one.model("model")


def test_a_model_without_a_version_is_not_served(fake: FakeTriton) -> None:
    fake.rules["ModelMetadata"] = changed(lambda answer: answer.ClearField("versions"))
    with to(fake) as one, pytest.raises(ModelError, match=f"^{fake.url} serves no version of model 'model'; look at"):
        one.model("model")


def test_a_server_that_is_not_alive_is_asked_for_nothing_more(fake: FakeTriton) -> None:
    fake.rules["ServerLive"] = changed(lambda answer: setattr(answer, "live", False))
    with to(fake) as one:
        for ask in (one.check_live, lambda: one.model("model")):
            with pytest.raises(ServerUnavailable, match=f"^the server at {fake.url} says that it is not alive; look"):
                ask()
    assert {call.method for call in fake.calls} == {"ServerLive"}


# What failures mean ------------------------------------------------------------------------------------------


def said(fake: FakeTriton, call: str, code: grpc.StatusCode, text: str = " the reason ") -> VoxtileError:
    """The error of a question that fails."""
    fake.rules[call] = fails(code, text)
    with to(fake) as one, pytest.raises(VoxtileError) as caught:
        one.config("model") if call == "ModelConfig" else one.check_live()
    return caught.value


@pytest.mark.parametrize("code", [CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED])
@pytest.mark.parametrize("call", ["ModelConfig", "ServerLive"])
def test_no_access_is_told_as_such_by_any_question(fake: FakeTriton, code: grpc.StatusCode, call: str) -> None:
    error = said(fake, call, code)
    assert type(error) is AccessError
    assert str(error).startswith(f"{fake.url}: the server refuses access (the reason); give a valid token")


@pytest.mark.parametrize("code", [CODE.NOT_FOUND, CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION])
def test_a_model_that_is_not_there_is_named_with_those_that_are(fake: FakeTriton, code: grpc.StatusCode) -> None:
    def entries(answer: Any) -> None:
        for name, state in (("b", "READY"), ("a", "READY"), ("c", "UNAVAILABLE")):
            answer.models.add(name=name, state=state)

    fake.rules["RepositoryIndex"] = changed(entries)
    error = said(fake, "ModelConfig", code)
    assert type(error) is ModelError
    assert str(error) == f"model 'model' is not offered by {fake.url} (the reason); it offers: a, b, model"


INNER = ("part_onnxruntime", "model_fold_0_openvino", "model_mean_onnxruntime")
"""Entries of engines and folds, which carry no card."""


@pytest.mark.parametrize(
    ("slow", "offered"),
    [((), "model, part"), (("model_mean_onnxruntime",), "model, model_mean_onnxruntime, part, part_onnxruntime")],
    ids=["every entry is told of", "one question fails, and no further one is asked"],
)
def test_engines_behind_public_names_are_not_offered(fake: FakeTriton, slow: tuple[str, ...], offered: str) -> None:
    def entries(answer: Any) -> None:
        for name in (*INNER, "part"):
            answer.models.add(name=name, state="READY")

    def config(request: Any, context: Any, right: Any) -> Any:
        if request.name == "absent" or request.name in slow:
            fails(CODE.NOT_FOUND if request.name == "absent" else CODE.DEADLINE_EXCEEDED)(request, context, right)
        answer = service_pb2.ModelConfigResponse()
        if request.name not in INNER:
            answer.config.parameters["card"].string_value = "{}"
        return answer

    fake.rules["RepositoryIndex"] = changed(entries)
    fake.rules["ModelConfig"] = config
    with to(fake) as one, pytest.raises(ModelError, match=rf"; it offers: {offered}$"):
        one.config("absent")


def test_a_server_that_offers_nothing_or_does_not_tell(fake: FakeTriton) -> None:
    fake.rules["RepositoryIndex"] = changed(lambda answer: answer.ClearField("models"))
    assert str(said(fake, "ModelConfig", CODE.NOT_FOUND)).endswith("; it offers: nothing")
    fake.rules["RepositoryIndex"] = fails(CODE.UNAVAILABLE)
    assert str(said(fake, "ModelConfig", CODE.NOT_FOUND)).endswith("; it offers: what it does not tell")


@pytest.mark.parametrize("code", [CODE.INTERNAL, CODE.UNKNOWN, CODE.DATA_LOSS])
def test_a_server_that_fails_to_answer_is_there(fake: FakeTriton, code: grpc.StatusCode) -> None:
    error = said(fake, "ModelConfig", code)
    assert type(error) is ServerUnavailable
    assert str(error) == f"the server at {fake.url} fails to answer (the reason); look at the server's log"


@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.UNIMPLEMENTED, CODE.NOT_FOUND, CODE.DEADLINE_EXCEEDED])
def test_what_is_no_triton_is_told_with_what_to_do(fake: FakeTriton, code: grpc.StatusCode) -> None:
    error = said(fake, "ServerLive", code)
    assert type(error) is ServerUnavailable
    assert str(error) == (
        f"no Triton server answers gRPC at {fake.url} (the reason); start one (`make serve`), or give its address with "
        "--url HOST:PORT, and --tls where it encrypts"
    )


@pytest.mark.parametrize("code", [CODE.UNAUTHENTICATED, CODE.INTERNAL, CODE.UNAVAILABLE])
def test_a_failure_without_words_is_named_by_its_status(fake: FakeTriton, code: grpc.StatusCode) -> None:
    assert f"({code})" in str(said(fake, "ServerLive", code, ""))


def test_a_server_that_is_silent_is_waited_for_ten_seconds(fake: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    with to(fake) as one:
        one.model("model")
        assert all(0 < (call.seconds_left or 0) < 10.5 for call in fake.calls)
        monkeypatch.setattr(endpoint_module, "CONTROL_TIMEOUT_S", 0.2)
        fake.rules["ServerLive"] = silent(fake)
        with pytest.raises(ServerUnavailable, match="no Triton server answers"):
            one.check_live()


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "\x00", None, 3, b"model"])
def test_a_name_that_no_model_can_have_is_not_asked_for(fake: FakeTriton, name: Any) -> None:
    with (
        to(fake) as one,
        pytest.raises(ModelError, match=r"^expected the name of a model, found .*; `voxtile models` li"),
    ):
        one.config(name)
    assert not fake.calls


# A request ---------------------------------------------------------------------------------------------------


def answered(one: Endpoint, model: Any, request: Request) -> tuple[Call, Any, Any]:
    """Sends a request and waits: the call, its result and its error."""
    arrived = threading.Event()
    heard: list[Any] = []

    def done(*answer: Any) -> None:
        heard.extend(answer)
        arrived.set()

    call = one.send(model, request, done)
    assert arrived.wait(30)
    assert heard[0] is call
    return call, heard[1], heard[2]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_scores_are_those_of_the_tiles(fake: FakeTriton, shared_memory: bool) -> None:
    fake.network = lambda tiles: tiles[:, :, ::-1] + 1
    with to(fake, shared_memory=shared_memory) as one:
        model = one.model("model")
        for factor in (1, 2, 3):  # in the same memory
            call, result, error = answered(one, model, Request(7, factor * TILES, None))
            assert error is None
            assert (call.slot is not None) == shared_memory
            scores = one.scores(model, call, result)
            one.release(call, trusted=True)
            np.testing.assert_array_equal(scores, factor * TILES[:, :, ::-1] + 1)
        assert fake.count("SystemSharedMemoryRegister") == int(shared_memory)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_the_statistics_of_the_scan_go_with_every_tile(fake: FakeTriton, shared_memory: bool) -> None:
    """The tensor `intensity` lies behind the tiles, and the scores behind both."""
    seen: list[Any] = []
    read = fake._read
    fake._read = lambda *tensor: seen.append(read(*tensor)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    statistics = np.array([[3.0, 0.5]], np.float32)
    with to(fake, shared_memory=shared_memory) as one:
        model = one.model("model")
        call, result, _ = answered(one, model, Request(0, TILES, statistics))
        np.testing.assert_array_equal(one.scores(model, call, result), TILES)
        one.release(call, trusted=True)
    np.testing.assert_array_equal(seen[0], TILES)
    np.testing.assert_array_equal(seen[1], [statistics, statistics])
    [sent] = [call.request for call in fake.calls if call.method == "ModelInfer"]
    assert [(one.name, one.datatype, list(one.shape)) for one in sent.inputs] == [
        ("roi", "FP32", [2, 1, *ROI]),
        ("intensity", "FP32", [2, 1, 2]),
    ]
    assert [output.name for output in sent.outputs] == ["scores"]


def test_a_call_has_a_number_a_deadline_and_the_headers(fake: FakeTriton) -> None:
    with to(fake, shared_memory=False, headers={"token": "abc"}, deadline_s=77.0) as one:
        model = one.model("model")
        calls = [answered(one, model, Request(index, TILES, None))[0] for index in (5, 5, 4)]
        assert [call.number for call in calls] == [1, 2, 3]
        assert [call.sent_at for call in calls] == [0.0, 0.0, 0.0]
    seen = [call for call in fake.calls if call.method == "ModelInfer"]
    assert [call.request.id for call in seen] == ["1", "2", "3"]
    assert {call.request.model_name for call in seen} == {"model"}
    assert all(0 < (call.seconds_left or 0) < 77.5 for call in seen)
    assert {call.headers["token"] for call in fake.calls} == {"abc"}


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tiles_that_were_compressed_arrive_as_they_were(fake: FakeTriton, algorithm: Any) -> None:
    with to(fake, shared_memory=False, compression=algorithm) as one:
        _, result, error = answered(one, one.model("model"), Request(0, TILES, None))
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("scores"), TILES)


def test_an_error_is_handed_to_the_caller(fake: FakeTriton) -> None:
    fake.rules["ModelInfer"] = fails(CODE.INTERNAL, "out of order")
    with to(fake, shared_memory=False) as one:
        call, result, error = answered(one, one.model("model"), Request(0, TILES, None))
        assert result is None
        assert (error.status(), error.message()) == ("StatusCode.INTERNAL", "out of order")
        assert call.slot is None


def test_a_request_that_cannot_even_be_sent_has_failed_like_any_other(
    fake: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    with to(fake) as one:
        model = one.model("model")

        def refused(*_: object, **__: object) -> None:
            raise REFUSED

        monkeypatch.setattr(one._client, "async_infer", refused)
        call, result, error = answered(one, model, Request(0, TILES, None))
        assert (result, error) == (None, REFUSED)
        one.release(call, trusted=False)


def test_cancelling_ends_the_wait(fake: FakeTriton) -> None:
    fake.rules["ModelInfer"] = silent(fake)
    arrived = threading.Event()
    heard: list[Any] = []

    def done(*answer: Any) -> None:
        heard.extend(answer)
        arrived.set()

    with to(fake, shared_memory=False) as one:
        call = one.send(one.model("model"), Request(0, TILES, None), done)
        call.cancel()
        assert arrived.wait(30)
        assert heard[2].status() == "StatusCode.CANCELLED"
    Call(Request(0, TILES, None), None, 1, MODEL).cancel()  # not even sent


@pytest.mark.parametrize("spoilt", ["model_version", "model_name", "id"])
def test_an_answer_to_another_question_is_refused(fake: FakeTriton, spoilt: str) -> None:
    fake.rules["ModelInfer"] = changed(lambda answer: setattr(answer, spoilt, "99"))
    with to(fake, shared_memory=False) as one:
        model = one.model("model")
        call, result, _ = answered(one, model, Request(0, TILES, None))
        with pytest.raises(ValueError, match=f"expected an answer with the {spoilt} '[a-z1]+', found '99'"):
            one.scores(model, call, result)


def test_each_request_asks_for_the_version_that_was_there_when_the_model_was_looked_up(fake: FakeTriton) -> None:
    with to(fake, shared_memory=False) as one:
        model = one.model("model")
        fake.version = "2"
        one.model("model")  # whoever else has looked meanwhile changes nothing
        call, result, _ = answered(one, model, Request(0, TILES, None))
        assert [seen.request.model_version for seen in fake.calls if seen.method == "ModelInfer"] == ["1"]
        with pytest.raises(ValueError, match="expected an answer with the model_version '1', found '2'"):
            one.scores(model, call, result)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_scores_of_another_size_type_or_with_nan_are_refused(fake: FakeTriton, shared_memory: bool) -> None:
    with to(fake, shared_memory=shared_memory) as one:
        model = one.model("model")
        for network, message in (
            (lambda tiles: tiles[:1], r"expected scores of FP32 \[2, 1, 4, 5, 6\], found FP32 \[1, 1, 4, 5, 6\]"),
            (lambda tiles: tiles.astype(np.float16), "found FP16"),
            (lambda tiles: tiles * np.float32(np.inf), "NaN or infinite"),
        ):
            fake.network = network
            call, result, _ = answered(one, model, Request(0, TILES + 1, None))
            with pytest.raises(ValueError, match=message):
                one.scores(model, call, result)
            one.release(call, trusted=True)


def test_scores_that_nobody_wrote_are_refused_and_the_memory_given_up(fake: FakeTriton) -> None:
    def unwritten(request: Any, context: Any, right: Any) -> Any:
        answer = service_pb2.ModelInferResponse(id=request.id)
        answer.outputs.add(name="scores", datatype="FP32", shape=TILES.shape)
        return answer

    fake.rules["ModelInfer"] = unwritten
    with to(fake) as one:
        model = one.model("model")
        call, result, _ = answered(one, model, Request(0, TILES, None))
        with pytest.raises(ValueError, match="the server did not write its scores to the shared memory; try --no-shar"):
            one.scores(model, call, result)
        assert call.slot is None
        fake.rules.clear()
        call, result, _ = answered(one, model, Request(0, TILES, None))
        assert call.slot is None  # from now on tiles go through gRPC
        np.testing.assert_array_equal(one.scores(model, call, result), TILES)
        one.tidy_slots(9)
        assert not fake._regions


# Memory ------------------------------------------------------------------------------------------------------


def test_memory_that_is_trusted_is_used_again_and_other_memory_never(fake: FakeTriton) -> None:
    with to(fake) as one:
        model = one.model("model")
        regions = []
        for trusted in (True, False, True):
            call, _, _ = answered(one, model, Request(0, TILES, None))
            regions.append(call.slot)
            one.release(call, trusted=trusted)
            assert call.slot is None
            one.release(call, trusted=trusted)  # there is nothing more to give back
        assert regions[0] is regions[1]
        assert regions[2] is not regions[1]
        assert len(fake._regions) == 1


def test_idle_memory_is_dropped_when_it_is_said(fake: FakeTriton) -> None:
    with to(fake) as one:
        model = one.model("model")
        calls = [one.send(model, Request(index, TILES, None), lambda *_: None) for index in range(3)]
        for call in calls:
            one.release(call, trusted=True)
        assert len(fake._regions) == 3
        one.tidy_slots(2)
        assert len(fake._regions) == 2
        one.forget_slots()
        assert not fake._regions


def test_a_request_that_cannot_be_written_gives_its_memory_back(fake: FakeTriton) -> None:
    """Its type is none that a card can name."""
    with to(fake) as one:
        model = one.model("model")
        with pytest.raises(StopIteration):
            one.send(model, Request(0, TILES.astype(np.complex128), None), lambda *_: None)
        assert not one._slots._slots.lent
        call, _, _ = answered(one, model, Request(0, TILES, None))
        one.release(call, trusted=True)
        assert len(fake._regions) == 1


def test_whether_memory_can_be_shared_is_tried(fake: FakeTriton) -> None:
    with to(fake) as one:
        assert one.can_share_memory() is True
        assert fake.count("SystemSharedMemoryRegister") == 1
    fake.rules["SystemSharedMemoryRegister"] = fails(CODE.UNIMPLEMENTED)
    with to(fake) as one:
        assert one.can_share_memory() is False


def test_the_headers_go_with_what_is_said_of_memory_too(fake: FakeTriton) -> None:
    with to(fake, headers={"token": "abc"}) as one:
        one.can_share_memory()
    assert {call.headers["token"] for call in fake.calls} == {"abc"}
    assert fake.count("SystemSharedMemoryUnregister") == 1


# The end -----------------------------------------------------------------------------------------------------


def test_the_end_gives_back_all_memory_and_may_come_twice(fake: FakeTriton) -> None:
    one = Endpoint(fake.url, ConnectionConfig())
    call, _, _ = answered(one, one.model("model"), Request(0, TILES, None))
    one.release(call, trusted=True)
    one.close()
    one.close()
    assert not fake._regions
    with pytest.raises(ValueError, match="closed"):
        one.check_live()


def test_a_fork_uses_nothing_of_its_parents_and_takes_nothing_from_it(
    fake: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    with to(fake) as one:
        model, parent = one.model("model"), os.getpid()
        call, _, _ = answered(one, model, Request(0, TILES, None))
        one.release(call, trusted=True)
        with monkeypatch.context() as patch:
            patch.setattr(endpoint_module.os, "getpid", lambda: parent + 1)
            for ask in (one.check_process, one.check_live, one.models):
                with pytest.raises(ForkError) as caught:
                    ask()
            assert str(caught.value).startswith(
                f"the connection to {fake.url} was made by process {parent}, and a fork cannot share it; make a Segmen"
            )
            pool = one._slots
            kept = pool._slots
            one.close()
            assert len(fake._regions) == 1
        one.check_live()  # the parent's connection is as it was
        for region in kept.idle:
            assert region.close()
