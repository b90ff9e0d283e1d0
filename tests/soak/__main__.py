"""Four clients and two servers, disturbed without pause; at the end, nothing may be lost, wrong or left behind.

    python -m tests.soak [--minutes 30] [--seed 1]

Prints a table and ends with 1 where something in it is not as it should be. What was written lies in out/soak.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tritonclient.grpc as triton

from tests.soak.checks import (
    FILES_MAY_GROW,
    MEMORY_MAY_GROW,
    MEMORY_SPARE,
    Check,
    at_least,
    left_in,
    none,
    not_growing,
    table,
)
from tests.soak.client import KINDS
from tests.soak.clients import ClientProcess
from tests.soak.clock import set_clock
from tests.soak.disturbances import SHARED_MEMORY, Disturbances
from tests.soak.model import write_model
from tests.soak.scans import NAME, write_scans
from voxtile.triton.connection import local_key
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "soak"
SCANS = 6
SHARED_MEMORY_BYTES = 192 << 20
"""The size of the soak's own /dev/shm: ample for two servers and four clients, and quickly filled."""

ONNX_RUNTIMES = ".ses"
"""A file of fixed size that ONNX Runtime itself keeps in the temporary folder."""

OWN_NAMESPACE = "VOXTILE_SOAK_NAMESPACE"
SAMPLE_S = 1.0


def main(words: list[str]) -> int:
    options = _options(words)
    if OWN_NAMESPACE not in os.environ and _can_unshare():
        return _again_in_a_namespace(words)
    bounded = os.environ.get(OWN_NAMESPACE) == "mounted" and _mount_small_memory()
    shutil.rmtree(OUT, ignore_errors=True)
    for folder in ("tmp", "repositories/0", "repositories/1", "scans"):
        (OUT / folder).mkdir(parents=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(OUT / "tmp")  # what is left behind is seen there
    checks = soak(options.minutes * 60, bounded, options.seed)
    print(table(checks))
    return 0 if all(check.held for check in checks) else 1


def soak(seconds: float, bounded: bool, seed: int) -> list[Check]:
    """Runs the soak and returns what was found at its end."""
    write_scans(OUT / "scans", SCANS)
    before = left_in(SHARED_MEMORY, "voxtile*")
    servers = [_server(number) for number in range(2)]
    clock = OUT / "clock"
    set_clock(clock, 0)
    clients: list[ClientProcess] = []
    disturbances = Disturbances(servers, clock, bounded, seed)
    try:
        for server in servers:
            server.start()
        urls = [server.grpc_url for server in servers]
        clients = [
            ClientProcess(kind, seed + number, OUT / "scans", urls, clock, OUT / f"{kind}.log")
            for number, kind in enumerate(KINDS)
        ]
        disturbances.start()
        sizes = _watch(seconds, clients)
        disturbances.stop()
        for client in clients:
            client.stop()
        codes = [client.wait() for client in clients]
        regions = [region for url in urls for region in _registered(url)]
        names = left_in(SHARED_MEMORY, "voxtile-*")
    finally:
        if disturbances.is_alive():
            disturbances.stop()
        for client in clients:
            if client.running:
                client.stop()
                client.wait()
        for server in servers:
            server.stop()
    after = [name for name in left_in(SHARED_MEMORY, "*") if name not in before]
    return [
        *_work(clients, codes, disturbances),
        *_happened(disturbances, clients, bounded),
        none("regions registered with the servers", regions),
        none("names of clients in /dev/shm", names),
        none("names in /dev/shm once the servers have ended", after),
        none(
            "files left in the temporary folder", [name for name in left_in(OUT / "tmp", "*") if name != ONNX_RUNTIMES]
        ),
        *_growth(clients, sizes),
    ]


def _server(number: int) -> EmbeddedServer:
    """A server with a repository of its own, whose models are loaded and unloaded by request."""
    repository = OUT / "repositories" / str(number)
    write_model(repository)
    options = ServerOptions(
        model_control_mode="explicit", load_models=(NAME,), threads=1, log_file=OUT / f"server-{number}.log"
    )
    return EmbeddedServer(repository, options)


def _watch(seconds: float, clients: list[ClientProcess]) -> list[int]:
    """Waits; returns how many bytes the temporary folder held from second to second."""
    sizes, end = [], time.monotonic() + seconds
    while time.monotonic() < end and all(client.running for client in clients):
        time.sleep(SAMPLE_S)
        sizes.append(_bytes_in(OUT / "tmp"))
    return sizes


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _registered(url: str) -> list[str]:
    with triton.InferenceServerClient(url) as client:
        return list(client.get_system_shared_memory_status(headers=local_key(url), client_timeout=10).regions)


def _work(clients: list[ClientProcess], codes: list[int | None], disturbances: Disturbances) -> list[Check]:
    """What the clients have done."""
    events = {kind: [one for client in clients for one in client.events(kind)] for kind in ("right", "wrong", "lost")}
    ends = [one for client in clients for one in client.events("end")]
    return [
        *(at_least(f"right masks of client {client.kind!r}", len(client.events("right")), 1) for client in clients),
        none("wrong masks", [one["scan"] for one in events["wrong"]]),
        none("lost scans", [one["reason"].strip().splitlines()[-1] for one in events["lost"]]),
        none("clients that hung or ended in an error", [code for code in codes if code != 0]),
        none("threads that clients have left", [name for one in ends for name in one["threads"]]),
        none("failed disturbances", [disturbances.error] if disturbances.error else []),
    ]


def _happened(disturbances: Disturbances, clients: list[ClientProcess], bounded: bool) -> list[Check]:
    """What went wrong on purpose: without it, the soak would prove nothing."""
    counts = disturbances.counts
    done = [
        at_least(what, counts[what], 1)
        for what in ("server killed", "backend killed", "model reloaded", "model taken away", "clock moved")
    ]
    if bounded:
        done.append(at_least("/dev/shm full", counts["/dev/shm full"], 1))
    else:
        done.append(Check("/dev/shm full", "not done: no mount namespace of our own", "1 or more", True))
    brought_down = {what: count for what, count in counts.items() if "another" in what}
    done += [Check(what, str(count), "any", True) for what, count in brought_down.items()]
    right = [one for client in clients for one in client.events("right")]
    done.append(at_least("requests sent again", sum(one["retries"] for one in right), 1))
    done.append(at_least("scans through shared memory", sum(one["shared_memory"] for one in right), 1))
    done.append(at_least("scans cancelled", sum(len(client.events("cancelled")) for client in clients), 1))
    return done


def _growth(clients: list[ClientProcess], sizes: list[int]) -> list[Check]:
    found = []
    for client in clients:
        taken = client.events("right")
        memory = [one["rss"] for one in taken]
        files = [one["files"] for one in taken]
        found.append(
            not_growing(f"memory of client {client.kind!r}", memory, MEMORY_MAY_GROW, MEMORY_SPARE, 1 << 20, " MiB")
        )
        found.append(not_growing(f"open files of client {client.kind!r}", files, 1, FILES_MAY_GROW))
    found.append(not_growing("bytes in the temporary folder", sizes, 1, 1 << 16))
    return found


# A /dev/shm of our own -----------------------------------------------------------------------------------------


def _unshare() -> list[str]:
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_unshare(), "true"], capture_output=True, check=False).returncode == 0


def _again_in_a_namespace(words: list[str]) -> int:
    command = [*_unshare(), sys.executable, "-m", "tests.soak", *words]
    return subprocess.run(command, env=os.environ | {OWN_NAMESPACE: "mounted"}, check=False).returncode


def _mount_small_memory() -> bool:
    options = f"size={SHARED_MEMORY_BYTES},mode=1777"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(SHARED_MEMORY)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the clients are disturbed")
    parser.add_argument("--seed", type=int, default=1, help="chooses what happens when")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
