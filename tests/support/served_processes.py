"""What the server's tests ask of processes: who is there, who is gone, and whether a server answers rightly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as triton

from tests.support import tiny_entries as tiny

SHARED_MEMORY = Path("/dev/shm")
# Triton's stubs look for their server every 0.3 s; the rest is for a busy machine.
GONE_WITHIN_S = 15.0


def doubled(server_url: str) -> bool:
    """Whether the server behind this address answers, and rightly."""
    roi = np.arange(np.prod(tiny.ROI), dtype=np.int16).reshape(1, *tiny.ROI)
    taken = triton.InferInput("roi", roi.shape, "INT16")
    taken.set_data_from_numpy(roi)
    with triton.InferenceServerClient(server_url) as client:
        scores = client.infer("double", [taken], client_timeout=60).as_numpy("scores")
    return np.array_equal(scores, 2.0 * roi + 1)


def regions(owner: int) -> list[str]:
    return [path.name for path in SHARED_MEMORY.glob(f"voxtile_{owner}_*")]


def family(pid: int) -> list[psutil.Process]:
    """tritonserver and its stubs."""
    server = psutil.Process(pid)
    stubs = server.children(recursive=True)
    assert any("triton_python_backend_stub" in stub.name() for stub in stubs)
    return [server, *stubs]


def served(pid: int) -> Path:
    """The repository as tritonserver was told it: a link, where Triton could not take the path itself."""
    return Path(_told(pid, "--model-repository="))


def shm_prefix(pid: int) -> str:
    """The beginning of the names of this tritonserver's regions of shared memory."""
    return _told(pid, "--backend-config=python,shm-region-prefix-name=")


def _told(pid: int, option: str) -> str:
    [word] = [word for word in psutil.Process(pid).cmdline() if word.startswith(option)]
    return word.removeprefix(option)


def eventually(condition: Callable[[], bool], within_s: float = GONE_WITHIN_S) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def all_gone(processes: list[psutil.Process]) -> bool:
    return eventually(lambda: not any(process.is_running() for process in processes))
