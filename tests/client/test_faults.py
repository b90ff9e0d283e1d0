"""What an error of a server means: every status code of gRPC has one meaning."""

from __future__ import annotations

import grpc
import pytest

from voxtile.triton.faults import Fault, classify, no_triton

MEANING = {
    "OK": Fault.REFUSED,
    "CANCELLED": Fault.SERVER_LOST,
    "UNKNOWN": Fault.SERVER_LOST,
    "INVALID_ARGUMENT": Fault.REFUSED,
    "DEADLINE_EXCEEDED": Fault.DEADLINE,
    "NOT_FOUND": Fault.SERVER_LOST,
    "ALREADY_EXISTS": Fault.REFUSED,
    "PERMISSION_DENIED": Fault.REFUSED,
    "RESOURCE_EXHAUSTED": Fault.QUEUE_FULL,
    "FAILED_PRECONDITION": Fault.REFUSED,
    "ABORTED": Fault.REFUSED,
    "OUT_OF_RANGE": Fault.REFUSED,
    "UNIMPLEMENTED": Fault.REFUSED,
    "INTERNAL": Fault.REFUSED,
    "UNAVAILABLE": Fault.SERVER_LOST,
    "DATA_LOSS": Fault.REFUSED,
    "UNAUTHENTICATED": Fault.REFUSED,
}


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_every_status_code_has_a_meaning(code: grpc.StatusCode) -> None:
    assert classify(str(code), "any text") is MEANING[code.name]


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_which_codes_say_that_no_triton_answers(code: grpc.StatusCode) -> None:
    assert no_triton(str(code)) is (code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Exceeds maximum queue size", Fault.QUEUE_FULL),
        ("Unable to find shared memory region: 'voxtile-1-2-3'", Fault.MEMORY_FORGOTTEN),
        (None, Fault.REFUSED),
    ],
)
def test_texts_that_a_code_does_not_tell_apart(text: str | None, meaning: Fault) -> None:
    assert classify("StatusCode.INVALID_ARGUMENT", text) is meaning
    assert classify(None, text) is meaning
