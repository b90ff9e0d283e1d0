"""A gateway in a process of its own, or one in this process without a server behind it; and curl to call it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from tests.support import whole_scans
from tests.support.whole_scans import write_scan as write_scan  # for the tests of gateways
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.gateway.app import make_app
from voxtile_server.gateway.settings import Settings

MODEL = "small-unet"
ENGINE = "small-unet_openvino"


@dataclass(frozen=True)
class Called:
    """Something that listens at `url`."""

    url: str
    folder: Path

    def curl(self, path: str, *arguments: str | Path) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        command = ["curl", "-sS", "-H", "Expect:", "-D", "-", *map(str, arguments), f"{self.url}{path}"]
        answer = subprocess.run(command, capture_output=True, check=True).stdout
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body

    def error(self, path: str, *arguments: str | Path) -> tuple[int, str]:
        """Status and line of a request that is refused."""
        status, _, body = self.curl(path, *arguments)
        told: str = json.loads(body)["error"]
        assert "\n" not in told
        return status, told


@dataclass(frozen=True)
class Gateway(Called):
    """A gateway in a process of its own."""

    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def gateway_here(settings: Settings) -> Iterator[Called]:
    """A gateway on a thread of this process; in the end nothing is left in the folder of its settings."""
    assert settings.folder is not None
    server = uvicorn.Server(uvicorn.Config(make_app(settings), host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Called(f"http://127.0.0.1:{port}", settings.folder)
    finally:
        server.should_exit = True
        thread.join()
    assert list(settings.folder.iterdir()) == []


@contextlib.contextmanager
def gateway(root: Path, *arguments: str, module: str = "voxtile_server.gateway") -> Iterator[Gateway]:
    """Runs a gateway until the block ends, and checks that it then has left nothing, and has said nothing."""
    folder, log = root / "spool", root / "gateway.log"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", module, "--port", "0", "--folder", str(folder), *arguments]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        address = re.search(r"listens on (\S+),", line)
        assert address, line + log.read_text()
        try:
            yield Gateway(f"http://{address[1]}", folder, log, process)
        finally:
            process.terminate()
            assert process.wait(60) == 0
    assert list(folder.iterdir()) == []
    assert log.read_text() == ""


def put(scan: Path) -> tuple[str, ...]:
    return ("-X", "POST", "-T", str(scan))


def executions(server: EmbeddedServer) -> int:
    """How many batches the engine has run."""
    return whole_scans.executions(server.grpc_url, ENGINE)


def settled(server: EmbeddedServer) -> int:
    """How many batches the engine has run, once it runs no more."""
    return whole_scans.settled(server.grpc_url, ENGINE)
