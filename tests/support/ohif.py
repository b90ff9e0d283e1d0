"""OHIF, a viewer of DICOM in a browser, from npm's package: fetched once, and served before an archive's DICOMweb.

Knows nothing of what is shown.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import mimetypes
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from voxtile_server.install.fetch import cache_folder

VERSION = "3.13.2"
PACKAGE = f"@ohif/app@{VERSION}"
SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""Of npm's archive, in Base64, as `npm view @ohif/app@3.13.2 dist.integrity` says it. It is 50 MB."""

INSIDE = PurePosixPath("package/dist")
NOT_NEEDED = ("ort", "dicom-microscopy-viewer")
"""Folders of the viewer that no scan needs: three quarters of it."""

FETCHED_WITHIN_S = 300

CONFIG = {
    "routerBasename": "/",
    "showStudyList": False,
    "extensions": [],
    "modes": [],
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "pacs",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "pacs",
            "configuration": {
                "friendlyName": "pacs",
                "name": "pacs",
                "wadoUriRoot": "/wado",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "qidoSupportsIncludeField": False,
                "supportsFuzzyMatching": False,
                "singlepart": "bulkdata,video",
            },
        }
    ],
}


def fetched() -> Path:
    """The folder of the viewer's files in the cache; npm fetches it where it is not there."""
    place = cache_folder() / "tests" / f"ohif-{VERSION}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, PACKAGE]
            subprocess.run(command, cwd=folder, check=True, timeout=FETCHED_WITHIN_S, capture_output=True)
            (archive,) = Path(folder).glob("*.tgz")
            found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            assert found == SHA512, f"{PACKAGE}: expected the archive with SHA-512 {SHA512}, found {found}"
            _unpack(archive, Path(folder) / "viewer")
            with contextlib.suppress(OSError):  # another process was first
                os.rename(Path(folder) / "viewer", place)
    return place


def _unpack(archive: Path, place: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in opened:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(INSIDE) or path.suffix == ".map":
                continue
            inside = path.relative_to(INSIDE)
            if ".." in inside.parts or inside.parts[0] in NOT_NEEDED:
                continue
            content = opened.extractfile(member)
            assert content is not None
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            with (place / inside).open("wb") as written:
                shutil.copyfileobj(content, written)


@contextlib.contextmanager
def viewer(archive: str) -> Iterator[str]:
    """Serves the viewer; gives its address. `archive` is the root of an Orthanc, http://HOST:PORT."""
    folder, behind = fetched(), urlsplit(archive).netloc

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/dicom-web/"):
                self._pass_on()
            elif path == "/app-config.js":
                self._send(200, "text/javascript", f"window.config = {json.dumps(CONFIG)};".encode())
            else:
                file = folder / path.lstrip("/")
                file = file if file.is_file() else folder / "index.html"
                self._send(200, mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes())

        def _pass_on(self) -> None:
            with contextlib.closing(HTTPConnection(behind, timeout=60)) as asked:
                asked.request("GET", self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
                answer = asked.getresponse()
                self._send(answer.status, answer.headers.get("Content-Type", ""), answer.read())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=3600")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
