"""What the machine that serves has: GPUs, memory, shared memory, ports. Starts nothing; knows no model."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from voxtile.machine.memory import MIB, machine_bytes

SHARED_MEMORY = Path("/dev/shm")
CPU_FACTS = Path("/proc/cpuinfo")
QUERY_S = 60
"""Seconds that the GPU driver's own tool has to answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: the product's.
        architecture: such as `sm_90`.
        memory_bytes: its memory.
    """

    name: str
    architecture: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """A machine that serves.

    Attributes:
        gpus: what its driver shows.
        memory_bytes: memory of the machine, or of the container where that is less.
        shared_bytes: the size of /dev/shm; None where there is none.
        cpu: the model's name, as certificates name it.
        instructions: the features of its CPU, in the words of /proc/cpuinfo; None where they cannot be read.
        taken_ports: those among the ports asked for on which something listens that is no Triton.
    """

    gpus: tuple[Gpu, ...]
    memory_bytes: int
    shared_bytes: int | None
    cpu: str
    instructions: frozenset[str] | None
    taken_ports: tuple[int, ...] = ()

    @classmethod
    def here(cls, ports: Sequence[int] = ()) -> Machine:
        """This machine.

        Args:
            ports: on which a server shall listen; 0 stands for any that is free.
        """
        facts = _cpu_facts()
        flags = facts.get("flags")
        return cls(
            gpus=_gpus(),
            memory_bytes=machine_bytes(),
            shared_bytes=_shared_bytes(),
            cpu=facts.get("model name", "unknown"),
            instructions=None if flags is None else frozenset(flags.split()),
            taken_ports=tuple(port for port in ports if port and _is_taken(port)),
        )


def _cpu_facts() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor."""
    with suppress(OSError):
        first = CPU_FACTS.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        pairs = (line.partition(":")[::2] for line in first.splitlines())
        return {name.strip(): value.strip() for name, value in pairs}
    return {}


def _shared_bytes() -> int | None:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def _gpus(query: str = "nvidia-smi") -> tuple[Gpu, ...]:
    tool = shutil.which(query)
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=True)
        rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
        return tuple(Gpu(name, f"sm_{kind.replace('.', '')}", int(memory) * MIB) for name, kind, memory in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _is_taken(port: int) -> bool:
    """Whether a program listens on a port of this machine that is no Triton, which may be the very server meant."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return not _is_triton(port)
    return False


def _is_triton(port: int) -> bool:
    """Whether a Triton answers there, by gRPC or by HTTP (metrics too)."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as asked:
        asked.settimeout(2)
        asked.sendall(b"GET /v2 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        if b"triton" in asked.recv(4096):
            return True
    with suppress(InferenceServerException), InferenceServerClient(f"127.0.0.1:{port}") as client:
        return bool(client.is_server_live(client_timeout=2))
    return False
