"""The command `voxtile` with a network in this process in place of the server: for what has nothing to do with servers.

Run as `python -m tests.support.in_memory_commands ARGUMENTS…` it is a process of its own, which signals can end; the
network then takes SECONDS for each tile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

import voxtile.segmenter
from tests.support.heads import head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of

ROOT = Path(__file__).parents[2]
SECONDS = "VOXTILE_TEST_SECONDS"
BEGAN = "VOXTILE_TEST_BEGAN"


def doubled(tiles: NDArray[Any]) -> NDArray[Any]:
    """Two scores from the first channel: 0 and the value, so that whatever is not 0 is the second label."""
    return np.concatenate([np.zeros_like(tiles[:, :1]), tiles[:, :1]], axis=1)


def transport(channels: Sequence[str] = ("any",), network: Any = doubled) -> InMemoryTransport:
    """A model of these channels, in this process."""
    return InMemoryTransport(card_of(channels=tuple(channels)), network)


def save_scan(path: Path, seed: int = 1, shape: tuple[int, int, int] = (20, 18, 17)) -> Path:
    """Writes an asymmetric head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image(head(shape, seed)), path)
    return path


def command(*arguments: object) -> list[str]:
    """The words that run `voxtile` with `arguments` as a process of its own."""
    words = [*map(str, arguments), "--model", "phantom", "--url", "memory:1"]
    return [sys.executable, "-m", "tests.support.in_memory_commands", *words]


def start(
    *arguments: object,
    seconds: float = 0.0,
    began: Path | None = None,
    stdout: Any = subprocess.PIPE,
    **options: Any,
) -> subprocess.Popen:
    """Starts `voxtile` with `arguments`, its network taking `seconds` each time and making `began` at the first."""
    environment = {**os.environ, SECONDS: str(seconds), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment |= {BEGAN: str(began)} if began else {}
    return subprocess.Popen(
        command(*arguments), stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True, **options
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a process; returns its exit code and what it said on standard output and error."""
    out, said = process.communicate(timeout=120)
    return process.returncode, out or "", said or ""


def main() -> None:
    """Runs the command."""
    from voxtile.__main__ import main as run

    def slow(tiles: NDArray[Any]) -> NDArray[Any]:
        if BEGAN in os.environ:
            Path(os.environ[BEGAN]).touch()
        time.sleep(float(os.environ.get(SECONDS, "0")))
        return doubled(tiles)

    voxtile.segmenter.connect_transport = lambda *_: transport(network=slow)  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    run()


if __name__ == "__main__":
    main()
