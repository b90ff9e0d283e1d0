"""The door by which clients ask for a model: an entry of Triton's, and the socket behind it.

Clients reach the entry as they reach any model, over the same port, certificates and proxies, without a key. It can ask
for a model of the repository, and nothing else.
"""

from __future__ import annotations

import logging
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.repository import PLAIN

log = logging.getLogger("voxtile.server")

ENTRY = "voxtile_residency"
"""The name of the entry; the client knows it too."""

LONGEST_NAME = 1024
TIMEOUT_S = 5.0

CODE = Path(__file__).with_name("door_model.py")


class Door:
    """The entry and its socket, in a temporary folder that only this user can read.

    Args:
        answer: gives the answer to a text; called on several threads.

    Raises:
        ServerError: the temporary folder cannot be used.
    """

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="voxtile-residency-"))
        try:
            self.repository = self._folder / "models"
            _write_entry(self.repository / ENTRY, self._folder / "socket")
            self._server = _Server(str(self._folder / "socket"), _handler(answer))
        except BaseException as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise ServerError(f"the temporary folder {self._folder.parent} cannot be used ({error})") from None
            raise
        self._thread = threading.Thread(target=self._server.serve_forever, name="voxtile-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the socket and removes the folder."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def _handler(answer: Callable[[str], str]) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        timeout = TIMEOUT_S

        def handle(self) -> None:
            try:
                text = self.rfile.read(LONGEST_NAME).decode("utf-8", "replace")
                self.wfile.write(answer(text).encode())
            except OSError as error:  # the entry's process has ended
                log.warning("residency: a question was not answered (%s)", error)

    return Handler


def _write_entry(folder: Path, socket: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    if not PLAIN.fullmatch(str(folder)):
        raise ServerError(
            f"Triton cannot read models from {folder}; set TMPDIR to a path of letters, digits and _ . + - / only"
        )
    text = {"data_type": pb.TYPE_STRING, "dims": [1]}
    config = pb.ModelConfig(
        name=ENTRY,
        backend="python",
        input=[pb.ModelInput(name="model", **text)],
        output=[pb.ModelOutput(name="answer", **text)],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
        parameters={"socket": pb.ModelParameter(string_value=str(socket))},
    )
    (folder / "1").mkdir(parents=True)
    shutil.copy(CODE, folder / "1" / "model.py")
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
