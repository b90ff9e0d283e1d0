"""Asks a server that loads models on demand for one of them, through an entry that such a server has.

`voxtile-server --max-models` or `--idle` makes the entry. Any other server lacks it. Knows nothing of gRPC.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from voxtile.errors import NotLoadedError

log = logging.getLogger(__name__)

Found = TypeVar("Found")

ENTRY = "voxtile_residency"
"""The entry's name; the server knows it too."""

ASK_AGAIN_S = 1.0
"""Seconds between two questions for a model that is not loaded yet."""


@dataclass(frozen=True)
class Answer:
    """What the server says of a model that a client has asked for.

    Attributes:
        state: ready (send requests), waiting (ask again) or refused (it cannot be had).
        why: what is waited for, or why it is refused.
    """

    state: str
    why: str


@dataclass(frozen=True)
class Offer:
    """A model that the server can load.

    Attributes:
        name: its public name.
        version: the version that is or would be loaded.
        card: its card, as the entry has it.
        loaded: whether it is loaded.
    """

    name: str
    version: str
    card: str
    loaded: bool


def ask(client: Any, name: str, **how: Any) -> Answer:
    """Asks for a model, which makes the server load it where it is not loaded.

    Args:
        client: a tritonclient.grpc.InferenceServerClient.
        name: the model.
        how: passed on to its `infer`: headers and a deadline.

    Raises:
        InferenceServerException: the server has no such entry, or does not answer.
        ValueError: its answer is none.
    """
    found = _put(client, name, how)
    state, why = found.get("state"), found.get("why")
    if state not in ("ready", "waiting", "refused") or not isinstance(why, str):
        raise ValueError(f"expected a state and a reason, found {str(found)[:200]}")
    return Answer(state, why)


def offers(client: Any, **how: Any) -> list[Offer]:
    """All models that the server can load, by name. Raises as `ask` does."""
    try:
        return [Offer(**one) for one in _put(client, "", how)["models"]]
    except (KeyError, TypeError):
        raise ValueError("expected a list of models") from None


def once_loaded(question: Callable[[], Found], limit_s: float) -> Found:
    """Asks until the server has loaded the model that the question is about.

    Args:
        question: raises NotLoadedError until then.
        limit_s: seconds after which its error is raised.
    """
    deadline, told = time.monotonic() + limit_s, ""
    while True:
        try:
            return question()
        except NotLoadedError as error:
            if time.monotonic() > deadline:
                raise
            if str(error) != told:
                log.info("%s", error)
            told = str(error)
            time.sleep(ASK_AGAIN_S)


def _put(client: Any, text: str, how: dict[str, Any]) -> dict[str, Any]:
    from tritonclient.grpc import InferInput

    given = InferInput("model", [1], "BYTES")
    given.set_data_from_numpy(np.array([text.encode()], np.object_))
    found = client.infer(ENTRY, [given], **how).as_numpy("answer")
    try:
        return dict(json.loads(found[0]))
    except TypeError:
        raise ValueError("expected an object in JSON") from None
