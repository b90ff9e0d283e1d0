"""A server of HTTP that answers as a test says, in place of a PACS that does something odd."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BOUNDARY = "a-boundary"


@dataclass(frozen=True)
class Answer:
    """What is answered. length: what it says of its length; None for nothing, and the connection's end ends it."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/dicom+json"
    length: int | None = -1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebPacs:
    """A running server. Attributes: web: its address; calls: what it was asked so far."""

    web: str
    calls: list[Call] = field(default_factory=list)


def found(**tags: Any) -> Answer:
    """One result of a query, by number of tag, such as `t00201209=12`."""
    return Answer(
        body=json.dumps([{name[1:]: {"vr": "UI", "Value": [value]} for name, value in tags.items()}]).encode()
    )


def parts(objects: Sequence[bytes], end: bytes = b"--\r\n", length: int | None = -1) -> Answer:
    """Objects, as WADO-RS sends them; `end` follows the last boundary."""
    head = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + one for one in objects) + f"\r\n--{BOUNDARY}".encode() + end
    return Answer(200, body, f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', length)


@contextlib.contextmanager
def web_pacs(answer: Callable[[Call], Answer]) -> Iterator[WebPacs]:
    """Runs a server that answers each call with what `answer` gives."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = Call(self.command, self.path, dict(self.headers.items()), body)
            running.calls.append(call)
            said = answer(call)
            self.send_response(said.status)
            self.send_header("Content-Type", said.kind)
            for name, value in said.headers.items():
                self.send_header(name, value)
            if said.length is None:
                self.close_connection = True
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(said.body) if said.length < 0 else said.length))
                self.close_connection = said.length > len(said.body)
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that goes is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        running = WebPacs(f"http://127.0.0.1:{server.server_port}/dicom-web")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()
