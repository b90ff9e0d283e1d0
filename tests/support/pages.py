"""Documentation pages as programs: runs their fenced files and shell commands. Knows no page in particular."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300
PROGRAMS = {
    "python": [sys.executable],
    "voxtile": [sys.executable, "-m", "voxtile"],
    "voxtile-build": [sys.executable, "-m", "voxtile_build"],
}
"""Programs as this checkout has them, whatever is installed."""

DOORS = ("--http-port", "--metrics-port")
POLL_S = 0.1


def shell_lines(text: str) -> list[str]:
    """The lines of a page's `sh` blocks, without comments; a line that ends in a backslash goes on in the next."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (line.partition(" #")[0].strip() for line in lines) if line]


def commands(text: str) -> list[list[str]]:
    """The page's shell commands as words."""
    return [shlex.split(line) for line in shell_lines(text)]


def files(text: str) -> dict[str, str]:
    """The files that a page shows, by name: the fenced block after the words "as `NAME.py`" or "as `NAME.toml`"."""
    found: dict[str, str] = {}
    position = 0
    while match := re.compile(r"\bas\s`(\w+\.(?:toml|py))`").search(text, position):
        block = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL).search(text, match.end())
        assert block is not None, match[1]
        found[match[1]], position = block[1], block.end()
    return found


def environment(address: str | None = None) -> dict[str, str]:
    """This process's environment, with the checkout's code first and the server's address for the client."""
    paths = [str(ROOT / folder) for folder in ("client", "build", "server", "")]
    inherited = os.environ.get("PYTHONPATH", "")
    url = {"VOXTILE_URL": address} if address else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, inherited]), **url}


def run(command: Sequence[str], folder: Path, address: str | None = None) -> str:
    """Runs one command in `folder`; returns its standard output. Fails if it ends with another code than 0."""
    done = subprocess.run(
        [*PROGRAMS.get(command[0], [command[0]]), *command[1:]],
        cwd=folder,
        env=environment(address),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def served(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Runs the page's server on free ports while the block runs; yields the address of its gRPC service."""
    assert command[0] == "voxtile-server", command
    ready = folder / "ready.json"
    free = [word for option in ("--grpc-port", *(door for door in DOORS if door in command)) for word in (option, "0")]
    end = command.index("--") if "--" in command else len(command)
    own = [*command[1:end], *free, "--ready-file", str(ready), *command[end:]]
    words = [sys.executable, "-m", "voxtile_server", *own]
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not ready.exists():
            assert process.poll() is None, f"{shlex.join(command)} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{shlex.join(command)} is not ready after {SECONDS} s"
            time.sleep(POLL_S)
        yield str(json.loads(ready.read_text(encoding="utf-8"))["grpc_url"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
