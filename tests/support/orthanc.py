"""Runs a real Orthanc, the PACS of Debian's package, with DICOMweb, on free ports and in a folder of the test."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PROGRAM = "/usr/sbin/Orthanc"
PLUGINS = [f"/usr/share/orthanc/plugins/lib{name}.so" for name in ("OrthancDicomWeb", "OrthancGdcm")]
AET = "ORTHANC"
STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes:
        web: the address of its DICOMweb.
        node: AET@HOST:PORT.
        root: the address of its own interface.
        process: its process.
    """

    web: str
    node: str
    root: str
    process: subprocess.Popen[bytes]

    @property
    def web_port(self) -> int:
        """Of HTTP."""
        return int(self.root.rpartition(":")[2])

    @property
    def node_port(self) -> int:
        """Of DIMSE."""
        return int(self.node.rpartition(":")[2])


@contextlib.contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """Starts an Orthanc that keeps all in `folder`; `settings` replace those of its configuration. It ends at once."""
    folder.mkdir(parents=True, exist_ok=True)
    http, dicom = free_ports(2)
    configuration = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "HttpPort": http,
        "DicomPort": dicom, "DicomAet": AET, "DicomCheckCalledAet": True, "Plugins": PLUGINS,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }  # fmt: skip
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([PROGRAM, str(file)], cwd=folder, stdout=log, stderr=log) as process,
    ):
        root = f"http://localhost:{http}"
        running = Orthanc(f"{root}/dicom-web", f"{AET}@localhost:{dicom}", root, process)
        try:
            _wait(running, folder / "log")
            yield running
        finally:
            process.kill()  # an orderly end takes seconds, and nothing is kept


def rest(running: Orthanc, path: str, body: bytes | None = None) -> Any:
    """What its own interface answers, from JSON."""
    with urlopen(f"{running.root}{path}", body, timeout=60) as answer:  # type: ignore[arg-type,unused-ignore]
        return json.load(answer)


def upload(running: Orthanc, folder: Path) -> None:
    """Puts the objects of a folder in by its own interface."""
    for file in sorted(folder.iterdir()):
        rest(running, "/instances", file.read_bytes())


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(running: Orthanc, log: Path) -> None:
    """Waits until both ports answer."""
    limit = time.monotonic() + STARTS_WITHIN_S
    for port in (running.web_port, running.node_port):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert running.process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.05)
