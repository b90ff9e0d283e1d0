"""tritonserver's log: where it is written, and what it says about why a server could not start."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO

from voxtile_server.errors import ServerError

LAST_LINES = 6
# A line of the log: E1122 03:52:59.123456 123 model_lifecycle.cc:642] "…", the message escaped as in JSON.
ERROR = re.compile(r'^E\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S+\] "(?P<message>.*)"$', re.MULTILINE)
FAILURES = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.+)"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.+)"),
    re.compile(r"(?P<reason>[Ee]nsemble '?(?P<model>[^' ]+)'? depends on .+?)(?: Model '.*)?$"),
)
PARSE_ERROR = re.compile(r"Error parsing text-format inference\.ModelConfig: (?P<reason>.+)")
CHANGED = re.compile(r"\"successfully (?P<what>loaded|unloaded) '(?P<model>[^']+)'")
STATUS = re.compile(r"^(?:Internal|Invalid argument|Unavailable|Not found|Unsupported): ")
NOT_SHOWN = ("|", "+", "I")  # tables and information
USAGE = "\nUsage: tritonserver"
NO_PORT = "already in use"


class ServerLog:
    """One file that the runs of a server append to, and what the present run has written there.

    Args:
        path: the file; None for a temporary one.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._given = path is not None
        self._path = Path(path).absolute() if path is not None else None
        self._start = 0
        self._read_to = 0
        self._last_line = ""
        self._failures: dict[str, str] = {}

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            ServerError: no file was given and no run has begun.
        """
        if self._path is None:
            raise ServerError("the server was not started, so there is no log yet")
        return self._path

    def open(self) -> IO[bytes]:
        """Begin a run.

        Returns:
            The file, to append to.

        Raises:
            ServerError: it cannot be written.
        """
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="voxtile-server-"), "tritonserver.log")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("ab")
        except OSError as error:
            raise ServerError(f"--log-file: cannot write {self._path} ({error.strerror})") from error
        self._start = self._read_to = file.tell()
        self._last_line, self._failures = "", {}
        return file

    def text(self) -> str:
        """All that the present run has written."""
        return self._read_from(self._start).decode("utf-8", "replace")

    def failures(self) -> dict[str, str]:
        """The models that the present run could not load so far, with Triton's reasons.

        It reads only what was appended since the last call, so that it may be called often.
        """
        whole, newline, _ = self._read_from(self._read_to).rpartition(b"\n")
        if newline:
            self._read_to += len(whole) + 1
            # A reason may stand on the line before, which an earlier call has read.
            text = self._last_line + "\n" + whole.decode("utf-8", "replace")
            self._last_line = text.rpartition("\n")[2]
            self._failures = model_failures(text) | self._failures
        return dict(self._failures)

    def remove_temporary(self) -> None:
        """Remove the file, unless it was given."""
        if not self._given and self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()
            self._path = None

    def _read_from(self, position: int) -> bytes:
        if self._path is None or not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(position)
            return file.read()


def model_failures(log: str) -> dict[str, str]:
    """Triton's own reason for each model that it could not load, without the stub's traceback."""
    reasons: dict[str, str] = {}
    for error in ERROR.finditer(log):
        for pattern in FAILURES:
            found = pattern.search(error["message"])
            if found:
                reason = _plain(found["reason"]) + _parse_error(log[: error.start()])
                reasons.setdefault(found["model"], reason)
                break
    return reasons


def loaded_models(log: str) -> list[str]:
    """The names of the models that are loaded, sorted: those that were loaded more often than unloaded."""
    times: Counter[str] = Counter()
    for change in CHANGED.finditer(log):
        times[change["model"]] += 1 if change["what"] == "loaded" else -1
    return sorted(model for model, count in times.items() if count > 0)


def explain(log: str) -> str:
    """Why the server ended or is not ready: each failed model with its reason, or the last lines of the log."""
    failures = model_failures(log)
    # An ensemble that waits for a broken model is not a cause.
    causes = {model: reason for model, reason in failures.items() if "depends on" not in reason} or failures
    if causes:
        return "; ".join(f"model '{model}': {reason}" for model, reason in causes.items())
    shown = log.partition(USAGE)[0]  # a wrong option is followed by pages of help
    lines = [line for line in shown.splitlines() if line.strip() and not line.startswith(NOT_SHOWN)]
    return "its last words: " + (" | ".join(lines[-LAST_LINES:]) or "none")


def _plain(reason: str) -> str:
    """One line, without the stub's traceback and Triton's status word."""
    head = reason.split("\\n\\nAt:")[0].replace('\\"', '"').replace("\\n", " ").rstrip("; ")
    return STATUS.sub("", head)


def _parse_error(before: str) -> str:
    """What protobuf says of a config.pbtxt that does not parse; it stands on the line before Triton's error."""
    found = PARSE_ERROR.search(before.rstrip("\n").rpartition("\n")[2])
    return f" (line:column {found['reason']})" if found else ""
