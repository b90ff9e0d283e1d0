"""What an error of a server means: every status of gRPC and every class of HTTP has one meaning."""

from __future__ import annotations

import grpc
import pytest

from voxtile.triton.faults import Fault, Remedy, classify, lacks_model, memory_in_use, no_answer_in_time

MEANING = {
    "OK": (Remedy.RETRY_ELSEWHERE, Fault.BROKEN),
    "CANCELLED": (Remedy.RETRY_ELSEWHERE, Fault.SERVER_LOST),
    "UNKNOWN": (Remedy.RETRY_ELSEWHERE, Fault.BROKEN),
    "INVALID_ARGUMENT": (Remedy.GIVE_UP, Fault.REFUSED),
    "DEADLINE_EXCEEDED": (Remedy.RETRY_ELSEWHERE, Fault.DEADLINE),
    "NOT_FOUND": (Remedy.RETRY_ELSEWHERE, Fault.SERVER_LOST),
    "ALREADY_EXISTS": (Remedy.GIVE_UP, Fault.REFUSED),
    "PERMISSION_DENIED": (Remedy.GIVE_UP, Fault.DENIED),
    "RESOURCE_EXHAUSTED": (Remedy.SLOW_DOWN, Fault.QUEUE_FULL),
    "FAILED_PRECONDITION": (Remedy.GIVE_UP, Fault.REFUSED),
    "ABORTED": (Remedy.RETRY_HERE, Fault.CONFLICT),
    "OUT_OF_RANGE": (Remedy.GIVE_UP, Fault.REFUSED),
    "UNIMPLEMENTED": (Remedy.GIVE_UP, Fault.REFUSED),
    "INTERNAL": (Remedy.RETRY_ELSEWHERE, Fault.BROKEN),
    "UNAVAILABLE": (Remedy.RETRY_ELSEWHERE, Fault.SERVER_LOST),
    "DATA_LOSS": (Remedy.RETRY_ELSEWHERE, Fault.BROKEN),
    "UNAUTHENTICATED": (Remedy.GIVE_UP, Fault.DENIED),
}
HTTP = {
    200: Fault.BROKEN,
    302: Fault.REFUSED,
    400: Fault.REFUSED,
    401: Fault.DENIED,
    403: Fault.DENIED,
    404: Fault.SERVER_LOST,
    405: Fault.REFUSED,
    407: Fault.DENIED,
    408: Fault.DEADLINE,
    409: Fault.CONFLICT,
    413: Fault.TOO_LARGE,
    418: Fault.REFUSED,
    425: Fault.QUEUE_FULL,
    429: Fault.QUEUE_FULL,
    499: Fault.SERVER_LOST,
    500: Fault.BROKEN,
    501: Fault.REFUSED,
    502: Fault.SERVER_LOST,
    503: Fault.SERVER_LOST,
    504: Fault.DEADLINE,
    505: Fault.REFUSED,
    520: Fault.BROKEN,
}
# A model may have any name, and a server's message repeats it.
MISLEADING = ("any text", "", "model 'queue-unet' failed", "the model 'in use' has no shared memory", "unauthenticated")


@pytest.mark.parametrize("text", MISLEADING)
@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_every_status_code_has_a_meaning(code: grpc.StatusCode, text: str) -> None:
    fault = classify(str(code), text)
    assert (fault.remedy, fault) == MEANING[code.name]
    assert fault.meaning


@pytest.mark.parametrize("text", MISLEADING)
def test_every_status_of_http_has_a_meaning(text: str) -> None:
    for status in range(100, 600):
        by_class = Fault.REFUSED if 300 <= status < 500 else Fault.BROKEN
        assert classify(status, text) is HTTP.get(status, by_class), status


def test_what_has_no_status_or_an_unknown_one_is_a_broken_answer() -> None:
    for status in (None, "", "StatusCode.NEW", "(16, 'as a tuple')"):
        assert classify(status, None) is Fault.BROKEN


@pytest.mark.parametrize(
    ("status", "text", "meaning"),
    [
        ("UNAVAILABLE", "in ensemble 'e', [request id: 7] Exceeds maximum queue size", Fault.QUEUE_FULL),
        ("UNAVAILABLE", "Request timeout expired", Fault.QUEUE_FULL),
        (503, "Exceeds maximum queue size", Fault.QUEUE_FULL),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", Fault.DENIED),
        (503, "This protocol is restricted, expecting header 'x'", Fault.DENIED),
        ("NOT_FOUND", "This protocol is restricted, expecting header 'x'", Fault.SERVER_LOST),
        (504, "Request timeout expired", Fault.DEADLINE),
        ("NOT_FOUND", "Unable to find shared memory region: 'voxtile-1-2-3'", Fault.MEMORY_FORGOTTEN),
        ("INVALID_ARGUMENT", "Unable to find shared memory region: 'voxtile-1-2-3'", Fault.MEMORY_FORGOTTEN),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)", Fault.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (9 vs. 4)", Fault.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4: 9", Fault.TOO_LARGE),
        ("OUT_OF_RANGE", "Error, message length too large: found 9 bytes, the limit is: 4 bytes", Fault.TOO_LARGE),
        ("UNKNOWN", "Payload Too Large", Fault.TOO_LARGE),
        ("INTERNAL", "gRPC message exceeds maximum size 4: 9", Fault.TOO_LARGE),
        ("INVALID_ARGUMENT", "message length too large", Fault.REFUSED),
        ("INTERNAL", "Stub process 'unet_0_0' is not healthy.", Fault.SERVER_LOST),
        ("UNKNOWN", "Stub process 'unet_0_0' is not healthy.", Fault.SERVER_LOST),
        ("UNAVAILABLE", "Stub process 'unet_0_0' is not healthy.", Fault.SERVER_LOST),
        ("INVALID_ARGUMENT", "Stub process 'unet_0_0' is not healthy.", Fault.REFUSED),
        ("UNKNOWN", "Received http2 header with status: 413", Fault.TOO_LARGE),
        ("UNKNOWN", "Received http2 header with status: 503", Fault.SERVER_LOST),
        ("UNAVAILABLE", "Received http2 header with status: 429", Fault.QUEUE_FULL),
        ("INVALID_ARGUMENT", "Exceeds maximum queue size", Fault.REFUSED),
        ("UNAUTHENTICATED", "exceeds maximum queue size of strangers", Fault.DENIED),
    ],
)
def test_texts_that_a_code_does_not_tell_apart(status: str | int, text: str, meaning: Fault) -> None:
    assert classify(status if isinstance(status, int) else f"StatusCode.{status}", text) is meaning


def test_what_says_something_of_the_server_alone_counts_against_no_request() -> None:
    assert {fault for fault in Fault if not fault.counts} == {Fault.QUEUE_FULL, Fault.SERVER_LOST}
    alone = {code.name for code in grpc.StatusCode if not classify(str(code), None).counts}
    assert alone == {"CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert {fault for fault in Fault if fault.lost} == {
        Fault.SERVER_LOST,
        Fault.DEADLINE,
        Fault.MEMORY_FORGOTTEN,
        Fault.DENIED,
    }


def test_which_codes_say_that_a_server_lacks_a_model() -> None:
    lacking = {code.name for code in grpc.StatusCode if lacks_model(str(code))}
    assert lacking == {"NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    assert not lacks_model(None)


def test_which_codes_leave_open_whether_a_server_has_obeyed() -> None:
    silent = {code.name for code in grpc.StatusCode if no_answer_in_time(str(code))}
    assert silent == {"DEADLINE_EXCEEDED", "CANCELLED"}
    assert not no_answer_in_time(None)


def test_a_server_says_that_it_still_uses_memory() -> None:
    """Triton's own words are tested against the real server."""
    assert memory_in_use("Cannot unregister shared memory region 'voxtile-1', it is in use.")
    assert not memory_in_use("Unable to find shared memory region: 'voxtile-1'")
    assert not memory_in_use(None)


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_says_what_to_do_where_the_servers_words_do_not(fault: Fault) -> None:
    assert bool(fault.advice) == (fault in (Fault.DEADLINE, Fault.BROKEN, Fault.TOO_LARGE, Fault.DENIED))
