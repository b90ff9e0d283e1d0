"""What goes wrong during the soak: servers are killed, models reloaded, /dev/shm fills up, clocks jump.

One thing at a time, chosen by a seed, and never both servers at once, so that no scan has a reason to fail. What a
disturbance itself brings down, as a full /dev/shm brings down Triton, is started again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.soak.clock import set_clock
from tests.soak.scans import NAME
from voxtile_server.embedded import EmbeddedServer

SHARED_MEMORY = Path("/dev/shm")
BALLAST = SHARED_MEMORY / "ballast"
FULL_S, DOWN_S, PAUSE_S = (1.0, 4.0), (0.5, 3.0), (0.5, 4.0)
"""Seconds, from … to: for which /dev/shm is full, a server stays down, and nothing happens between two things."""

JUMPS_S = (-30 * 86_400, -3_700, -10, 10, 3_700, 400 * 86_400)
CHANGE_MODEL_S = 30.0
"""Seconds that loading the model may take on a busy machine."""


class Disturbances(threading.Thread):
    """Disturbs until `stop` is called; then everything is as it should be again.

    Args:
        servers: the two servers.
        clock: the file that holds the clients' clock.
        bounded: whether /dev/shm is a small one of our own, which may be filled.
        seed: chooses what happens when.

    Attributes:
        counts: how often each thing was done.
        error: what ended the thread too early.
    """

    def __init__(self, servers: Sequence[EmbeddedServer], clock: Path, bounded: bool, seed: int) -> None:
        super().__init__(name="disturbances")
        self._servers, self._clock = servers, clock
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._what: list[Callable[[], None]] = [
            self.kill_server, self.kill_stub, self.reload, self.unload, self.move_clock,
        ]  # fmt: skip
        if bounded:
            self._what.append(self.fill_memory)
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                # Each once in a random order: a short soak sees everything too.
                for one in self._random.sample(self._what, len(self._what)):
                    if self._stopping.wait(self._random.uniform(*PAUSE_S)):
                        return
                    one()
                    self._revive()
        except BaseException as error:
            self.error = error
        finally:
            BALLAST.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        self._revive()

    # What goes wrong -----------------------------------------------------------------------------------------

    def kill_server(self) -> None:
        """kill -9 for one server, which comes back after a while."""
        server = self._random.choice(self._servers)
        server.kill()
        time.sleep(self._random.uniform(*DOWN_S))
        server.start()
        self.counts["server killed"] += 1

    def kill_stub(self) -> None:
        """kill -9 for a process of the model's backend; Triton starts another, or the model stays down."""
        server = self._random.choice(self._servers)
        stubs = [one for one in psutil.Process(server.pid).children(recursive=True) if "stub" in one.name()]
        if not stubs:  # the last one was killed, and Triton has not started another
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            self._random.choice(stubs).kill()
        time.sleep(self._random.uniform(*DOWN_S))
        self.counts["backend killed"] += 1

    def reload(self) -> None:
        """Loads the model anew while it is in use."""
        server = self._random.choice(self._servers)
        for file in (server.repository / NAME).rglob("*"):
            os.utime(file)
        self._change_model(server, "load")
        self.counts["model reloaded"] += 1

    def unload(self) -> None:
        """Takes the model away and brings it back."""
        server = self._random.choice(self._servers)
        self._change_model(server, "unload")
        time.sleep(self._random.uniform(*DOWN_S))
        self._change_model(server, "load")
        self.counts["model taken away"] += 1

    def fill_memory(self) -> None:
        """Leaves no byte of /dev/shm for a while."""
        until = time.monotonic() + self._random.uniform(*FULL_S)
        with BALLAST.open("wb") as file:
            while time.monotonic() < until:
                size, step = file.seek(0, os.SEEK_END), 1 << 20
                while step >= 4096:
                    try:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        step //= 2
                time.sleep(0.05)
        BALLAST.unlink()
        self.counts["/dev/shm full"] += 1

    def move_clock(self) -> None:
        """Moves the calendar clock of the clients: minutes, hours, a year, forwards and back."""
        set_clock(self._clock, self._random.choice(JUMPS_S))
        self.counts["clock moved"] += 1

    # What is put right ---------------------------------------------------------------------------------------

    def _revive(self) -> None:
        """Starts again what a disturbance has brought down with it."""
        for server in self._servers:
            if not server.running:
                server.start()
                self.counts["server brought down by another disturbance"] += 1
            elif NAME not in server.ready_models():
                self._change_model(server, "unload")
                self._change_model(server, "load")
                self.counts["model brought down by another disturbance"] += 1

    def _change_model(self, server: EmbeddedServer, change: str) -> None:
        """Loads or unloads the model; a server that dies meanwhile is started again by `_revive`."""
        with triton.InferenceServerClient(server.grpc_url) as client, contextlib.suppress(InferenceServerException):
            if change == "load":
                client.load_model(NAME, headers=server.key_header, client_timeout=CHANGE_MODEL_S)
            else:
                client.unload_model(NAME, headers=server.key_header, client_timeout=CHANGE_MODEL_S)
