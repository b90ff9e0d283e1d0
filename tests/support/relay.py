"""A gRPC server that passes Triton's calls on to a real one, keeps their headers, and may change what is asked.

It stands for what a port-forward does to a client: the server that answers is not where its address says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from voxtile.triton.connection import local_key


@dataclass(frozen=True)
class Refusal:
    """What a call is refused with."""

    code: grpc.StatusCode
    text: str = "refused by the relay"


@dataclass(frozen=True)
class Answer:
    """What a call is answered with, without asking the server."""

    content: bytes


Change = Callable[[bytes], bytes | Refusal | Answer]
"""Takes a request, and gives the request that is passed on, or what is done in place of it."""


@dataclass
class Relay:
    """A running relay.

    Attributes:
        url: HOST:PORT.
        calls: the method, such as "ModelInfer", and the headers of each call so far.
    """

    url: str
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _ in self.calls)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.Channel, url: str, relay: Relay, changes: Mapping[str, Change]) -> None:
        self._channel, self._url, self._relay, self._changes = channel, url, relay, changes

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        headers = {entry.key: entry.value for entry in details.invocation_metadata}

        def answer(request: bytes, context: Any) -> bytes:
            self._relay.calls.append((method, headers))
            passed_on = self._changes.get(method, lambda unchanged: unchanged)(request)
            if isinstance(passed_on, Refusal):
                context.abort(passed_on.code, passed_on.text)
            if isinstance(passed_on, Answer):
                return passed_on.content
            try:
                # The client finds the key by the server's own port, and does not know it here.
                key = tuple(local_key(self._url).items())
                return self._channel.unary_unary(details.method)(passed_on, timeout=60, metadata=key)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def relay_to(url: str, changes: Mapping[str, Change] | None = None) -> Iterator[Relay]:
    """Runs a relay to the server at `url`; `changes` are by method."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(url, unlimited) as channel, ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, options=unlimited)
        relay = Relay(f"localhost:{server.add_insecure_port('localhost:0')}")
        server.add_generic_rpc_handlers((_Handler(channel, url, relay, changes or {}),))
        server.start()
        try:
            yield relay
        finally:
            server.stop(None).wait()
